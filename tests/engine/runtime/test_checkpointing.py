"""Activation checkpointing under the engine: recomputed regions run lean again and give the dense gradients."""

import copy
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from grids import slow_but
from trady.engine import Engine
from trady.planner import Plan, make_plan
from trady.planner.models.training_step import batch_size_of, call_model, step_loss


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.max_pool2d(F.relu(self.norm(self.first(x)), inplace=True), 3, 1, 1)
        dropped: Tensor = self.drop(self.second(out))
        return x + dropped


class Blocks(nn.Module):
    """Two blocks behind a stem; ``how`` says whether they are checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = nn.Conv2d(3, 8, 3), Block(), Block(), nn.Linear(8, 5)
        self.how = ""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.how == "sequential":
            x = checkpoint_sequential([self.one, self.two], 2, x, use_reentrant=False)
        elif self.how == "nested":
            x = checkpoint(lambda y: self.two(checkpoint(self.one, y, use_reentrant=False)), x, use_reentrant=False)
        elif self.how:
            for block in (self.one, self.two):
                x = checkpoint(block, x, use_reentrant=self.how == "reentrant")
        else:
            x = self.two(self.one(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


Checked = Callable[..., Engine]


@pytest.fixture
def net() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 3, 6, 6), torch.tensor([1, 3])


@pytest.fixture(scope="module")
def plans() -> dict[tuple[str, ...], Plan]:
    """A plan with all layers drawn, and one without the stem."""
    return {
        exclude: make_plan(Blocks(), torch.zeros(2, 3, 6, 6), budget=8000, batch_size=2, exclude=exclude)
        for exclude in ((), ("stem",))
    }


WAYS = ["reentrant", "not reentrant", "sequential", "nested"]


@pytest.mark.parametrize(
    "attached", [pytest.param(True, id="attached"), pytest.param(False, id="engine", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("exclude", [(), ("stem",)], ids=["all", "not the stem"])
def test_checkpointed_blocks_have_the_dense_gradients(
    how: str,
    exclude: tuple[str, ...],
    attached: bool,
    net: Blocks,
    plans: dict[tuple[str, ...], Plan],
    batch: tuple[Tensor, Tensor],
    judges: ModuleType,
) -> None:
    if how == "reentrant" and exclude:
        pytest.skip("PyTorch gives no gradients behind inputs that require none")
    net.how = how
    engine = (Engine.attach if attached else Engine)(net, plans[exclude])
    engine.train()
    assert all(engine.channels.channels)
    run = net if attached else engine
    for seed in (0, 1):
        torch.manual_seed(seed)
        loss = step_loss(run(batch[0]), batch[1], None)
        engine.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss.backward()
        judges.assert_dense_gradients(engine, judges.dense_step(net, *batch, seed=seed))
    engine.detach()


def test_a_checkpointed_region_keeps_its_inputs_only(
    net: Blocks, plans: dict[tuple[str, ...], Plan], batch: tuple[Tensor, Tensor], judges: ModuleType
) -> None:
    engine = Engine(net, plans[()])
    kept = []
    for how in ("", "not reentrant"):
        net.how = how
        found, loss = judges.kept_storages(engine, *batch, None, net)
        kept.append(sum(found.values()))
        loss.backward()
    assert kept[1] < kept[0]


def test_reentry_without_inputs_that_require_a_gradient_is_told(
    net: Blocks, plans: dict[tuple[str, ...], Plan], batch: tuple[Tensor, Tensor]
) -> None:
    net.how = "reentrant"
    engine = Engine(net, plans[("stem",)])
    optimizer = engine.register(torch.optim.SGD(engine.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        step_loss(engine(batch[0]), batch[1], None).backward()
    assert optimizer is not None
    with pytest.warns(UserWarning, match=r"Drawn weights one.first.weight, .* checkpoint with use_reentrant=False"):
        optimizer.step()


def test_another_engines_regions_are_not_ours(
    net: Blocks, plans: dict[tuple[str, ...], Plan], batch: tuple[Tensor, Tensor], judges: ModuleType
) -> None:
    other = copy.deepcopy(net)
    net.how, other.how = "not reentrant", "reentrant"
    first, second = Engine(net, plans[()]).train(), Engine(other, plans[()], seed=5).train()
    torch.manual_seed(0)
    one = step_loss(first(batch[0]), batch[1], None)
    torch.manual_seed(0)
    two = step_loss(second(batch[0]), batch[1], None)
    (one + two).backward()
    twin = judges.dense_step(net, *batch)
    judges.assert_dense_gradients(first, twin)
    judges.assert_dense_gradients(second, twin)


def test_functions_called_beside_modules_in_a_region_are_refused_by_pytorch(
    net: Blocks, plans: dict[tuple[str, ...], Plan], batch: tuple[Tensor, Tensor]
) -> None:
    """A known limitation: what a region calls outside of modules is not entered again; PyTorch notices."""
    engine, one = Engine(net, plans[()]), net.one.forward
    net.one.forward = lambda x: checkpoint(lambda y: F.relu(one(y)), x, use_reentrant=False)  # type: ignore[method-assign]
    loss = step_loss(engine(batch[0]), batch[1], None)
    with pytest.raises(torch.utils.checkpoint.CheckpointError, match=r"metadata|number of tensors"):
        loss.backward()


def test_saved_tensors_can_go_elsewhere(
    net: Blocks, plans: dict[tuple[str, ...], Plan], batch: tuple[Tensor, Tensor], judges: ModuleType
) -> None:
    engine = Engine(net, plans[()]).train()
    torch.manual_seed(0)
    with save_on_cpu():
        loss = step_loss(engine(batch[0]), batch[1], None)
    loss.backward()
    judges.assert_dense_gradients(engine, judges.dense_step(net, *batch))


def check_switch(net: nn.Module, inputs: Any, switch: Callable[[], Any], judges: ModuleType, budget: str) -> None:
    """A library's own switch, turned on once the engine is there."""
    plan = make_plan(net, inputs, budget=budget, batch_size=batch_size_of(inputs))
    with torch.no_grad():
        torch.manual_seed(0)
        targets = judges.synthetic_targets(call_model(copy.deepcopy(net), inputs))
    twin = judges.dense_step(net, inputs, targets)
    engine = Engine(net, plan).train()
    switch()
    torch.manual_seed(0)
    step_loss(call_model(engine, inputs), targets, None).backward()
    assert engine._is_checkpointed
    judges.assert_dense_gradients(engine, twin, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", slow_but({"test_vit"}.__contains__, ["test_vit", "test_efficientnet"]))
def test_timms_own_switch(name: str, judges: ModuleType) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5)
    size = net.default_cfg["input_size"][-1]
    check_switch(net, torch.randn(2, 3, size, size), net.set_grad_checkpointing, judges, "64KB")


@pytest.mark.parametrize("reentrant", slow_but(lambda reentrant: not reentrant, [True, False]))
def test_transformers_own_switch(reentrant: bool, judges: ModuleType) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    net = transformers.BertForSequenceClassification(config)

    def switch() -> None:
        net.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            net.enable_input_require_grads()

    check_switch(net, {"input_ids": torch.randint(32, (2, 6))}, switch, judges, "16KB")
