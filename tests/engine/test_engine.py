"""The engine's steps against dense autograd: gradients, bytes, weights, modes."""

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from cases import TOYS, UNDRAWN
from grids import slow_but
from trady.engine import Engine
from trady.engine.runtime import reentry
from trady.planner import Plan, make_plan
from trady.planner.errors import EngineError
from trady.planner.ledger import BatchedLedger
from trady.planner.models.training_step import Batch as StepBatch
from trady.planner.models.training_step import batch_size_of, call_model, map_tensors, step_loss, synthetic_targets
from trady.planner.options import DType, Strategy
from trady.planner.sampling.schedule import draw
from trady.planner.units import format_bytes

Planned = Callable[..., tuple[nn.Module, Plan, Any, Tensor]]

#: Toy nets that have layers to draw from.
DRAWN = [name for name in TOYS if name not in UNDRAWN]
SOME = (
    "conv-bn-relu6-in-place",
    "residual-in-place",
    "branches",
    "pools-and-dropout",
    "transposed",
    "conv1d",
    "self-attention-dropout",
    "cross-attention",
    "used-twice",
)


@pytest.fixture(scope="module")
def planned(cases: ModuleType) -> Planned:
    """A toy net, its plan, a batch and targets; plans are made once."""
    known: dict[str, Plan] = {}

    def build(name: str, budget: int | str = 1500, **options: Any) -> tuple[nn.Module, Plan, Any, Tensor]:
        key = repr((name, budget, sorted(options.items())))
        net, inputs = cases.build(name)
        if key not in known:
            known[key] = make_plan(net, inputs, budget=budget, batch_size=batch_size_of(inputs), **options)
        with torch.no_grad():
            targets = synthetic_targets(call_model(copy.deepcopy(net), inputs))
        return net, known[key], inputs, targets

    return build


def check_step(judges: ModuleType, net: nn.Module, plan: Plan, inputs: Any, targets: Tensor, **limits: float) -> Engine:
    """One step of the engine: the dense gradients, the planned bytes."""
    engine = Engine(net, plan).train()
    twin = judges.dense_step(net, inputs, targets, norm=plan.settings.norm.value)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines, loss = judges.kept_lines(engine, inputs, targets)
    loss.backward()
    judges.assert_dense_gradients(engine, twin, **limits)
    planned = engine.ledger.lines.model_dump()
    assert {name: lines[name] for name in PLANNED} == {name: planned[name] for name in PLANNED}
    return engine


PLANNED = ("saved_activations", "draw_index", "residuals")


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        *((name, 1500) for name in DRAWN),
        *((name, "1MB") for name in ("branches", "mlp", "used-twice", "encoder-layer")),
    ],
)
def test_a_step_has_the_dense_gradients_and_the_planned_bytes(
    name: str, budget: int | str, planned: Planned, judges: ModuleType
) -> None:
    check_step(judges, *planned(name, budget))


@pytest.mark.parametrize(
    "name",
    slow_but(
        {"residual-in-place"}.__contains__, ["residual-in-place", "conv1d", "transposed", "self-attention-dropout"]
    ),
)
@pytest.mark.parametrize(
    "options",
    [{"norm": "train"}, {"train_bias": True}, {"scope": "training", "budget": 6000}, {"head": "none"}],
    ids=lambda options: next(iter(options)),
)
def test_steps_planned_otherwise(name: str, options: dict[str, Any], planned: Planned, judges: ModuleType) -> None:
    check_step(judges, *planned(name, **options))


@pytest.mark.parametrize(
    ("name", "strategy"),
    slow_but(
        lambda name, strategy: name == "branches" or strategy is Strategy.TRADY,
        ["branches", "cross-attention"],
        [strategy for strategy in Strategy if strategy is not Strategy.SU],
    ),
)
def test_every_strategy(name: str, strategy: Strategy, planned: Planned, judges: ModuleType) -> None:
    check_step(judges, *planned(name, strategy=strategy))


@pytest.mark.parametrize("scheme", [{"one": 0.7, "three": 0.4, "point": 0.5}])
def test_static_schemes_draw_channels_that_are_not_nested(
    scheme: dict[str, float], planned: Planned, judges: ModuleType
) -> None:
    engine = check_step(judges, *planned("branches", "1MB", strategy="su", scheme=scheme))
    drawn = engine.channels.channels
    assert len(drawn["one"]) == 2 and len(drawn["three"]) == 1


@pytest.mark.parametrize(
    "name",
    slow_but(
        {"branches", "grouped"}.__contains__, ["conv-bn-relu6-in-place", "residual-in-place", "branches", "grouped"]
    ),
)
def test_channels_last(name: str, planned: Planned, judges: ModuleType) -> None:
    net, plan, inputs, targets = planned(name, memory_format="channels_last")
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    check_step(judges, net, plan, inputs, targets)


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_but(
        lambda name, dtype: name == "branches" or (name, dtype) == ("cross-attention", "bfloat16"),
        ["branches", "pools-and-dropout", "cross-attention"],
        ["bfloat16", "float16"],
    ),
)
def test_the_model_in_another_type(name: str, dtype: str, planned: Planned, judges: ModuleType) -> None:
    net, plan, inputs, targets = planned(name, dtype=dtype)
    cast = map_tensors(lambda x: x.to(getattr(torch, dtype)) if x.is_floating_point() else x, inputs)
    check_step(judges, net, plan, cast, targets, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize(
    "name",
    slow_but(
        {"branches", "pools-and-dropout", "transposed", "cross-attention", "encoder-layer"}.__contains__,
        sorted({*SOME, "mlp", "encoder-layer", "hand-attention", "squeeze-excite"}),
    ),
)
def test_autocast(name: str, planned: Planned, judges: ModuleType) -> None:
    net, plan, inputs, targets = planned(name, amp="bfloat16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine = check_step(judges, net, plan, inputs, targets, rtol=5e-2, atol=2e-2)
    assert all(parameter.grad.dtype == torch.float32 for parameter in engine.parameters() if parameter.grad is not None)


class Small(nn.Module):
    """Two drawn convolutions around a norm, dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, groups=2)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        logits: Tensor = self.head(self.drop(self.conv(x)).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def small_plan() -> Plan:
    """Two of three and four of eight channels: fixed counts, other channels each epoch."""
    torch.manual_seed(0)
    return with_counts(make_plan(Small(), torch.zeros(4, 3, 8, 8), budget="1MB", batch_size=4), (2, 4))


def with_counts(plan: Plan, counts: tuple[int, ...]) -> Plan:
    """The plan with other numbers of channels."""
    return plan.model_copy(update={"counts": counts, "ledger": BatchedLedger(plan.table).of(counts)})


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    net = Small()
    assert net.norm.running_mean is not None and net.norm.running_var is not None
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return net


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 3, 8, 8), torch.randint(5, (4,))


def train_step(engine: nn.Module, optimizer: torch.optim.Optimizer | None, batch: tuple[Tensor, Tensor]) -> Tensor:
    loss = F.cross_entropy(engine(batch[0]), batch[1])
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    return loss


def registered(engine: Engine, **options: Any) -> torch.optim.Optimizer:
    optimizer = engine.register(torch.optim.SGD(engine.parameters(), **({"lr": 0.1} | options)))
    assert optimizer is not None
    return optimizer


Batch = tuple[Tensor, Tensor]


def test_steps_are_those_of_masked_dense_training(small: Small, small_plan: Plan, batch: Batch) -> None:
    """The plain optimizer on dense gradients of which only the drawn channels are kept goes the same way."""
    small.drop.p = 0.0
    twin = copy.deepcopy(small).train()
    twin.norm.eval()
    engine = Engine(small, small_plan).train()
    optimizer = registered(engine)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    for epoch in range(4):
        engine.resample(epoch)
        masks = {f"{name}.weight": torch.as_tensor(found) for name, found in engine.channels.channels.items()}
        for _ in range(2):
            train_step(engine, optimizer, batch)
            train_step(twin, None, batch)
            for name, parameter in twin.named_parameters():
                keep_drawn_gradient(name, parameter, masks)
            plain.step()
            plain.zero_grad()
    assert_close(small.state_dict(), twin.state_dict())


def keep_drawn_gradient(name: str, parameter: nn.Parameter, masks: dict[str, Tensor]) -> None:
    assert parameter.grad is not None
    if name == "conv.weight":  # grouped: rows 0 to 3 read channels 0 to 3
        mask = torch.zeros(2, 4)
        mask.view(-1)[masks[name]] = 1
        parameter.grad *= mask.repeat_interleave(4, 0)[:, :, None, None]
    elif name in masks:
        parameter.grad *= torch.zeros(parameter.shape[1]).index_fill(0, masks[name], 1)[None, :, None, None]
    elif not name.startswith("head"):
        parameter.grad = None


def test_draws_are_the_schedules(small: Small, small_plan: Plan) -> None:
    engine = Engine(small, small_plan, seed=3)
    engine.register(None)
    for epoch in (0, 1, 5, 1):
        report = engine.resample(epoch)
        expected = draw(small_plan, epoch, seed=3)
        assert engine.epoch == report.epoch == epoch
        assert {name: found.tolist() for name, found in engine.slices.channels.items()} == {
            name: found.tolist() for name, found in expected.channels.items()
        }
        for (name, parameter), layer in zip(engine.slices.named_parameters(), small_plan.table.layers, strict=True):
            index = torch.as_tensor(expected.channels[layer.name])
            weight = small.get_parameter(name)
            wanted = weight[:, index] if name == "stem.weight" else weight.view(2, 4, 4, 3, 3)[index // 4, :, index % 4]
            assert_close(parameter.detach(), wanted.detach())


def test_the_report_proves_the_draw(small: Small, small_plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(small, small_plan)
    engine.register(None)
    before = {(name, c) for name, found in engine.channels.channels.items() for c in found.tolist()}
    with caplog.at_level("INFO"):
        report = engine.resample(1)
    after = {(name, c) for name, found in engine.channels.channels.items() for c in found.tolist()}
    assert (report.entered, report.left) == (len(after - before), len(before - after)) and report.left > 0
    assert report.trainable_elements == sum(p.numel() for _, p in engine.slices.named_parameters())
    assert report.ledger.scopes.update == small_plan.ledger.scopes.update
    assert f"Draw of epoch 1: {report.entered} channels in" in caplog.text


def test_parameters_are_the_slices_and_what_always_trains(small: Small, small_plan: Plan) -> None:
    engine = Engine(small, small_plan)
    named = dict(engine.named_parameters())
    assert list(named) == ["stem.weight", "conv.weight", "head.weight", "head.bias"]
    assert list(map(id, engine.parameters())) == list(map(id, named.values()))
    assert named["head.weight"] is small.head.weight
    assert named["stem.weight"].shape == (8, 2, 3, 3) and named["conv.weight"].shape == (4, 4, 3, 3)
    assert {name for name, parameter in small.named_parameters() if parameter.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    assert next(name for name, _ in engine.named_parameters(prefix="x")) == "x.stem.weight"


def test_the_models_state_is_its_own_and_current(small: Small, small_plan: Plan, batch: Batch) -> None:
    keys = list(small.state_dict())
    engine = Engine(small, small_plan).train()
    optimizer = registered(engine)
    for epoch in range(3):
        engine.resample(epoch)
        before = copy.deepcopy(small.state_dict())
        train_step(engine, optimizer, batch)
        after = small.state_dict()
        assert list(after) == list(engine.state_dict()) == keys
        changed = {name for name in keys if not torch.equal(before[name], after[name])}
        assert changed == {"stem.weight", "conv.weight", "head.weight", "head.bias"}
        columns = (after["stem.weight"] != before["stem.weight"]).any(dim=3).any(dim=2).any(dim=0)
        assert columns.nonzero().flatten().tolist() == sorted(engine.channels.channels["stem"].tolist())
        for name, parameter in engine.slices.named_parameters():
            assert_close(engine.slices.gather(name, small.get_parameter(name)), parameter.detach())


def test_pickles_copies_and_averages_of_the_model_are_plain(small: Small, small_plan: Plan, batch: Batch) -> None:
    engine = Engine(small, small_plan).train()
    optimizer = registered(engine)
    average = AveragedModel(small)
    seen = []
    for _ in range(3):
        train_step(engine, optimizer, batch)
        average.update_parameters(small)
        seen.append(small.conv.weight.detach().clone())
    assert_close(average.module.get_parameter("conv.weight").detach(), torch.stack(seen).mean(0))
    before = copy.deepcopy(small.state_dict())
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    assert b"trady" not in buffer.getvalue()
    loaded = torch.load(buffer, weights_only=False)
    for copied in (loaded, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert type(copied) is Small
        assert_close(copied.state_dict(), before)
        assert_close(copied.eval()(batch[0]), small.eval()(batch[0]))


def test_an_engine_can_be_copied_and_pickled(small: Small, small_plan: Plan, batch: Batch) -> None:
    engine = Engine(small, small_plan, seed=1).train()
    train_step(engine, registered(engine), batch)
    for twin in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert_close(twin.state_dict(), engine.state_dict())
        assert [name for name, _ in twin.named_parameters()] == [name for name, _ in engine.named_parameters()]
        before = copy.deepcopy(small.state_dict())
        train_step(twin, registered(twin), batch)
        assert_close(small.state_dict(), before, rtol=0, atol=0)
        assert not torch.equal(twin.state_dict()["conv.weight"], before["conv.weight"])


@pytest.mark.parametrize(
    "how", ["load", "assign", "engine", "engine assign", "copy_", "data", "data.copy_", "new parameter"]
)
def test_slices_follow_weights_that_the_user_changes(
    how: str, small: Small, small_plan: Plan, batch: Batch, judges: ModuleType
) -> None:
    small.drop.p = 0.0
    engine = Engine(small, small_plan).train()
    optimizer = registered(engine)
    train_step(engine, optimizer, batch)
    torch.manual_seed(5)
    other = Small()
    state = {name: value.clone() for name, value in other.state_dict().items()}
    if how in ("load", "assign"):
        small.load_state_dict(copy.deepcopy(state), assign=how == "assign")
    elif how.startswith("engine"):
        engine.load_state_dict(copy.deepcopy(state), assign=how != "engine")
    else:
        for name, parameter in small.named_parameters():
            change(small, name, parameter, state[name], how)
        small.norm.load_state_dict(other.norm.state_dict())
    assert {name for name, _ in engine.named_parameters()} == {"stem.weight", "conv.weight", "head.weight", "head.bias"}
    twin = judges.dense_step(small, *batch)
    train_step(engine, None, batch)
    judges.assert_dense_gradients(engine, twin)
    for name, compact in engine.slices.named_parameters():
        assert_close(compact.detach(), engine.slices.gather(name, state[name]))
    optimizer.step()
    drawn = engine.slices.gather("conv.weight", small.conv.weight)
    assert_close(drawn, engine.slices.gather("conv.weight", state["conv.weight"] - 0.1 * twin.conv.weight.grad))


def change(model: nn.Module, name: str, parameter: nn.Parameter, value: Tensor, how: str) -> None:
    """Ways to give a model other weights."""
    if how == "copy_":
        with torch.no_grad():
            parameter.copy_(value)
    elif how == "data":
        parameter.data = value.clone()
    elif how == "data.copy_":
        parameter.data.copy_(value)
    else:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value.clone(), requires_grad=parameter.requires_grad))


class DataWriter(torch.optim.Optimizer):
    """Steps as many optimizers outside PyTorch do: through ``.data``."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad.data, alpha=-0.1)


def test_optimizers_that_write_through_data_reach_the_model(small: Small, small_plan: Plan, batch: Batch) -> None:
    small.drop.p = 0.0
    twin = copy.deepcopy(small)
    first, second = Engine(small, small_plan).train(), Engine(twin, small_plan).train()
    optimizer = first.register(DataWriter(first.parameters()))
    train_step(first, optimizer, batch)
    train_step(second, registered(second), batch)
    assert_close(small.state_dict(), twin.state_dict())


def modes_of(net: Small) -> tuple[bool, bool]:
    """Whether the norm and the dropout train."""
    return net.norm.training, net.drop.training


def test_frozen_norms_stay_frozen(small: Small, small_plan: Plan, batch: Batch) -> None:
    before = copy.deepcopy(small.norm.state_dict())
    engine = Engine(small, small_plan)
    small.train()
    train_step(engine, None, batch)
    with torch.no_grad():
        engine(batch[0])
    assert modes_of(small) == (True, True)
    assert_close(small.norm.state_dict(), before, rtol=0, atol=0)
    engine.train()
    assert modes_of(small) == (False, True)
    assert not engine.eval().training and not small.drop.training


def test_norms_that_train_follow_the_plain_model(planned: Planned, judges: ModuleType) -> None:
    net, plan, inputs, targets = planned("conv-bn-relu", norm="train")
    twin = judges.dense_step(net, inputs, targets, norm="train")
    engine = Engine(net, plan).train()
    step_loss(engine(inputs), targets, None).backward()
    assert_close(dict(net.named_buffers()), dict(twin.named_buffers()))
    assert dict(net.named_buffers())["1.num_batches_tracked"] == 1


def test_nothing_of_a_channel_that_left_remains(planned: Planned) -> None:
    net, plan, inputs, targets = planned("branches", strategy="trady")
    engine = Engine(net, plan)
    optimizer = engine.register(torch.optim.SGD(engine.parameters(), lr=0.1, momentum=0.9))
    before: list[weakref.ref[Any]] = []
    for epoch in range(6):
        engine.resample(epoch)
        step_loss(engine(inputs), targets, None).backward()
        optimizer.step()
        optimizer.zero_grad()
        gc.collect()
        kept = {id(parameter) for _, parameter in engine.slices.named_parameters()}
        assert all(reference() is None or id(reference()) in kept for reference in before)
        before = [weakref.ref(parameter) for _, parameter in engine.slices.named_parameters()]
        held = sum(parameter.numel() for parameter in engine.parameters())
        state = sum(entry["momentum_buffer"].numel() for entry in optimizer.state.values())
        assert (
            state
            == held
            == engine.ledger.lines.gradients // 4 + sum(p.numel() for p in net.parameters() if p.requires_grad)
        )


def test_an_unknown_optimizer_is_refused_at_the_draw(small: Small, small_plan: Plan, batch: Batch) -> None:
    engine = Engine(small, small_plan)
    optimizer = torch.optim.SGD(engine.parameters(), lr=0.1)
    before = engine.channels
    with pytest.raises(EngineError, match=r"Call engine.register\(optimizer\) once"):
        engine.resample(1)
    assert engine.channels is before
    train_step(engine, optimizer, batch)
    engine.register(optimizer)
    engine.resample(1)


def test_a_draw_between_micro_batches_is_refused(small: Small, small_plan: Plan, batch: Batch) -> None:
    engine = Engine(small, small_plan)
    optimizer = registered(engine)
    train_step(engine, None, batch)
    with pytest.raises(EngineError, match="between accumulated micro-batches"):
        engine.resample(1)
    assert engine.epoch == 0
    optimizer.step()
    engine.resample(1)


def test_accumulated_gradients_are_those_of_the_whole_batch(small: Small, small_plan: Plan, batch: Batch) -> None:
    small.drop.p = 0.0
    engine, (inputs, targets) = Engine(small, small_plan).train(), batch
    train_step(engine, None, batch)
    expected = [parameter.grad for parameter in engine.parameters()]
    engine.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        (F.cross_entropy(engine(inputs[part]), targets[part]) / 2).backward()
    assert_close([parameter.grad for parameter in engine.parameters()], expected)


def test_two_forwards_before_one_backward(small: Small, small_plan: Plan, batch: Batch, judges: ModuleType) -> None:
    small.drop.p = 0.0
    inputs = batch[0]

    def contrast(model: nn.Module) -> Tensor:
        product: Tensor = model(inputs) * model(inputs.flip(0) * 0.5)
        return product.sum() + sum(p.pow(2).sum() for p in model.parameters()) * 0

    twin = copy.deepcopy(small).train()
    twin.norm.eval()
    contrast(twin).backward()
    engine = Engine(small, small_plan).train()
    contrast(engine).backward()
    judges.assert_dense_gradients(engine, twin)


def test_a_penalty_on_the_slices(small: Small, small_plan: Plan, batch: Batch) -> None:
    engine = Engine(small, small_plan).train()
    penalty = sum(parameter.square().sum() for parameter in engine.parameters())
    assert isinstance(penalty, Tensor)
    (F.cross_entropy(engine(batch[0]), batch[1]) + penalty).backward()


def test_two_engines_in_one_process(small: Small, small_plan: Plan, batch: Batch, judges: ModuleType) -> None:
    small.drop.p = 0.0
    other = copy.deepcopy(small)
    twins = [judges.dense_step(net, *batch) for net in (small, other)]
    first, second = Engine.attach(small, small_plan), Engine.attach(other, small_plan, seed=7)
    loss = F.cross_entropy(small(batch[0]), batch[1]) + F.cross_entropy(other(batch[0]), batch[1])
    loss.backward()
    judges.assert_dense_gradients(first, twins[0])
    judges.assert_dense_gradients(second, twins[1])
    first.detach()
    assert second.slices.channels.keys() == first.slices.channels.keys()
    other.zero_grad()
    second.zero_grad()
    train_step(other, None, batch)
    judges.assert_dense_gradients(second, twins[1])
    second.detach()


def test_a_larger_batch_is_told_once_with_both_ledgers(small: Small, small_plan: Plan) -> None:
    engine, larger = Engine(small, small_plan), torch.zeros(6, 3, 8, 8)
    update = format_bytes(small_plan.ledger.scopes.update)
    with pytest.warns(UserWarning, match=rf"A batch of 6 samples takes update .*; planned were 4 \(update {update}"):
        engine(larger)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(larger)
        engine(larger[:2])
    with pytest.raises(EngineError, match="A batch of 6 samples takes update"):
        Engine(small, small_plan, strict=True)(larger)


@pytest.mark.parametrize("strict", [True, False])
def test_a_larger_batch_through_the_users_own_call(small: Small, small_plan: Plan, strict: bool) -> None:
    engine, larger = Engine.attach(small, small_plan, strict=strict), torch.zeros(6, 3, 8, 8)
    try:
        if strict:
            with pytest.raises(EngineError, match="A batch of 6 samples takes update"):
                small(larger)
        else:
            with pytest.warns(UserWarning, match="A batch of 6 samples takes update"):
                small(larger)
    finally:
        engine.detach()


def test_a_plan_of_another_model_is_refused(small: Small, small_plan: Plan) -> None:
    flags = [parameter.requires_grad for parameter in small.parameters()]
    small.conv = nn.Conv2d(8, 4, 3)
    with pytest.raises(
        EngineError, match=r"The plan is of another model: 2 .* differ: conv.bias \(.*8.* in the plan, .*4"
    ):
        Engine(small, small_plan)
    assert [parameter.requires_grad for parameter in small.parameters()] == flags
    small.extra = nn.Linear(2, 2)
    with pytest.raises(EngineError, match=r"extra.bias \(absent in the plan"):
        Engine(small, small_plan)


def test_a_plan_for_int8_is_accounting(small: Small, small_plan: Plan) -> None:
    plan = small_plan.model_copy(update={"settings": small_plan.settings.model_copy(update={"dtype": DType.INT8})})
    with pytest.raises(EngineError, match="The plan is for int8, which is accounting"):
        Engine(small, plan)


def hooks_in_place() -> int:
    return len(module_hooks._global_forward_pre_hooks) + len(module_hooks._global_forward_hooks)


def test_attached_models_run_lean_until_detached(
    small: Small, small_plan: Plan, batch: Batch, judges: ModuleType
) -> None:
    assert small.stem.bias is not None
    small.stem.bias.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    twin, hooks, attributes = judges.dense_step(small, *batch), hooks_in_place(), set(small.__dict__)
    engine = Engine.attach(small, small_plan)
    optimizer = registered(engine)
    engine.train()
    torch.manual_seed(0)
    train_step(small, None, batch)
    judges.assert_dense_gradients(engine, twin)
    optimizer.step()
    with torch.no_grad():
        assert not small(batch[0]).requires_grad
    assert hooks_in_place() > hooks and set(small.__dict__) == attributes and type(small) is Small
    after = copy.deepcopy(small.state_dict())
    engine.detach()
    assert (
        hooks_in_place() == hooks
        and not optimizer._optimizer_step_post_hooks
        and not optimizer._optimizer_step_pre_hooks
    )
    assert {name: parameter.requires_grad for name, parameter in small.named_parameters()} == flags
    assert_close(small.state_dict(), after, rtol=0, atol=0)
    small.zero_grad()
    train_step(small, None, batch)
    assert small.conv.weight.grad is not None and small.conv.weight.grad.ne(0).all(dim=-1).any()


class Breaks(Small):
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            super().forward(x)
        raise ValueError("broken on purpose")


@pytest.mark.parametrize("attached", [True, False])
def test_an_exception_leaves_nothing_behind(small: Small, small_plan: Plan, batch: Batch, attached: bool) -> None:
    small.__class__ = Breaks
    hooks = hooks_in_place()
    engine = Engine.attach(small, small_plan) if attached else Engine(small, small_plan)
    small.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="broken on purpose"):
            (small if attached else engine)(batch[0])
        with pytest.raises(ValueError, match="broken on purpose"):
            (small if attached else engine)(batch[0][0])
    assert not reentry._entered() and small.norm.training
    assert torch.overrides._get_current_function_mode_stack() == []
    small.__class__ = Small
    train_step(small if attached else engine, None, batch)
    assert all(parameter.grad is not None for parameter in engine.parameters())
    engine.detach()
    assert hooks_in_place() == hooks


def test_an_engine_that_is_gone_takes_its_hooks_along(small: Small, small_plan: Plan) -> None:
    hooks = hooks_in_place()
    engine = Engine.attach(small, small_plan)
    optimizer = registered(engine)
    known = weakref.ref(engine)
    del engine, optimizer
    gc.collect()
    assert known() is None and hooks_in_place() == hooks


def test_upstream_of_the_first_drawn_layer_nothing_requires_a_gradient(
    small: Small, small_plan: Plan, batch: Batch
) -> None:
    seen: dict[str, bool] = {}
    plan = with_counts(small_plan, (0, 4))
    engine = Engine(small, plan).train()
    for name, module in small.named_children():
        module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out.requires_grad}))
    train_step(engine, None, batch)
    assert seen == {"stem": False, "norm": False, "conv": True, "drop": True, "head": True}


def test_evaluation_keeps_nothing_and_runs_plain(small: Small, small_plan: Plan, batch: Batch) -> None:
    expected = small.eval()(batch[0])
    engine = Engine(small, small_plan).eval()
    with torch.no_grad():
        assert_close(engine(batch[0]), expected.detach(), rtol=0, atol=0)
        assert not engine(batch[0]).requires_grad
    with torch.inference_mode():
        assert_close(engine(batch[0]), expected.detach(), rtol=0, atol=0)
    train_step(engine, None, batch)


def test_a_draw_of_the_same_channels_in_another_order_keeps_the_slices_order(
    small: Small, small_plan: Plan, batch: Batch
) -> None:
    """All channels drawn: each epoch the same set, in another order; state and slices must agree on one."""
    engine = Engine(small, with_counts(small_plan, (3, 8)))
    optimizer = registered(engine, momentum=0.9)
    train_step(engine, optimizer, batch)
    engine.resample(1)
    drawn = {name: found.tolist() for name, found in engine.channels.channels.items()}
    assert {name: found.tolist() for name, found in engine.slices.channels.items()} == drawn
    resumed = Engine(copy.deepcopy(small), with_counts(small_plan, (3, 8)))
    again = registered(resumed, momentum=0.9)
    resumed.load_draw_state(engine.draw_state())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for found, restart in ((engine, optimizer), (resumed, again)):
        torch.manual_seed(0)
        train_step(found, restart, batch)
    assert_close(engine.state_dict(), resumed.state_dict(), rtol=0, atol=0)


def test_medyate_sees_the_norms_of_what_trained(planned: Planned) -> None:
    net, plan, inputs, targets = planned("branches", strategy="medyate")
    engine = Engine(net, plan)
    optimizer = registered(engine)
    step_loss(engine(inputs), targets, None).backward()
    expected = {name: found.tolist() for name, found in engine.slices.channel_norms().items()}
    drawn = {name: found.tolist() for name, found in engine.channels.channels.items()}
    optimizer.step()
    observed = engine.draw_state()["observed"]
    for name, norms in expected.items():
        assert observed[name][drawn[name]].tolist() == pytest.approx(norms)
        assert observed[name].isnan().sum() == len(observed[name]) - len(norms)
    optimizer.zero_grad()
    engine.resample(1)
    wanted = draw(plan, 1, observed={name: found.tolist() for name, found in observed.items()})
    assert {name: found.tolist() for name, found in engine.channels.channels.items()} == {
        name: found.tolist() for name, found in wanted.channels.items()
    }


def test_d_det_rgn_takes_a_dense_pass_at_each_draw(planned: Planned, judges: ModuleType) -> None:
    net, plan, inputs, targets = planned("branches", strategy="d-det-rgn")
    engine = Engine(net, plan)
    engine.register(None)
    with pytest.raises(EngineError, match="draws by the norms of a dense pass"):
        engine.resample(1)
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    state = copy.deepcopy(net.state_dict())
    report = engine.resample(1, batches=[StepBatch(inputs, targets)])
    twin = judges.dense_step(net, inputs, targets)
    norms = {
        layer.name: judges.whole_by_channel(twin.get_parameter(layer.weight_name).grad, layer)
        .flatten(1)
        .norm(dim=1)
        .tolist()
        for layer in plan.table.layers
    }
    wanted = draw(plan, 1, observed=norms)
    assert {name: sorted(found.tolist()) for name, found in engine.channels.channels.items()} == {
        name: sorted(found.tolist()) for name, found in wanted.channels.items()
    }
    assert any("dense pass for the norms" in note for note in report.notes)
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in net.parameters())
    assert_close(net.state_dict(), state, rtol=0, atol=0)


def test_biases_that_train_come_and_go_with_their_layers(planned: Planned) -> None:
    net, plan, inputs, targets = planned("branches", strategy="trady", train_bias=True, budget=700)
    engine = Engine(net, plan)
    optimizer = registered(engine, momentum=0.9)
    seen = set()
    for epoch in range(8):
        engine.resample(epoch)
        drawn = set(engine.channels.channels)
        seen.add(frozenset(drawn))
        biases = {f"{name}.bias" for name in drawn if hasattr(net.get_submodule(name), "bias")}
        biases = {name for name in biases if net.get_submodule(name[:-5]).bias is not None}
        trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        assert trained == biases | {"head.2.weight", "head.2.bias"}
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        assert held == {id(parameter) for parameter in engine.parameters()}
        step_loss(engine(inputs), targets, None).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(seen) > 1


def test_a_layer_the_engine_cannot_redirect_is_named_once(small: Small, small_plan: Plan, batch: Batch) -> None:
    engine = Engine(small, small_plan)
    small.conv.forward = lambda x: torch.zeros(4, 8, 6, 6)  # type: ignore[method-assign,assignment]
    with pytest.warns(UserWarning, match="Drawn layers conv were not used in this forward pass"):
        engine(batch[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(batch[0])


def test_double_backward_through_a_lean_operation_is_refused(small: Small, small_plan: Plan, batch: Batch) -> None:
    engine = Engine(small, small_plan)
    inputs = batch[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(engine(inputs).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_the_engine_moves_with_its_model(small: Small, small_plan: Plan, batch: Batch, judges: ModuleType) -> None:
    engine = Engine(small, small_plan).double()
    assert all(parameter.dtype == torch.float64 for parameter in engine.parameters())
    inputs = batch[0].double()
    twin = judges.dense_step(small, inputs, batch[1])
    engine.train()
    torch.manual_seed(0)
    train_step(engine, None, (inputs, batch[1]))
    judges.assert_dense_gradients(engine, twin)
