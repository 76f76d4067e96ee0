"""The engine's steps against dense autograd: gradients, bytes, weights, modes."""

import copy
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trady.engine import Engine
from trady.planner import Plan, make_plan
from trady.planner.options import Strategy
from trady.planner.training_step import batch_size_of, call_model, map_tensors, synthetic_targets

Planned = Callable[..., tuple[nn.Module, Plan, Any, Tensor]]

#: Toy nets that have layers to draw from.
TOYS = (
    "conv-bn-relu",
    "conv-bn-relu6-in-place",
    "depthwise-separable",
    "grouped",
    "transposed",
    "conv1d",
    "conv3d",
    "pools-and-dropout",
    "upsampled",
    "residual",
    "residual-in-place",
    "squeeze-excite",
    "branches",
    "mlp",
    "self-attention",
    "self-attention-dropout",
    "cross-attention",
    "cross-attention-other-values",
    "hand-attention",
    "encoder-layer",
    "tied-language-model",
    "used-twice",
    "bare-parameter",
    "stacked-experts",
    "distilled",
    "dict-inputs",
)
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
    [*((name, 1500) for name in TOYS), *((name, "1MB") for name in ("branches", "mlp", "used-twice", "encoder-layer"))],
)
def test_a_step_has_the_dense_gradients_and_the_planned_bytes(
    name: str, budget: int | str, planned: Planned, judges: ModuleType
) -> None:
    check_step(judges, *planned(name, budget))


@pytest.mark.parametrize("name", ["residual-in-place", "conv1d", "transposed", "self-attention-dropout"])
@pytest.mark.parametrize(
    "options",
    [{"norm": "train"}, {"train_bias": True}, {"scope": "training", "budget": 6000}, {"head": "none"}],
    ids=lambda options: next(iter(options)),
)
def test_steps_planned_otherwise(name: str, options: dict[str, Any], planned: Planned, judges: ModuleType) -> None:
    check_step(judges, *planned(name, **options))


@pytest.mark.parametrize("name", ["branches", "cross-attention"])
@pytest.mark.parametrize("strategy", [name for name in Strategy if name is not Strategy.SU])
def test_every_strategy(name: str, strategy: Strategy, planned: Planned, judges: ModuleType) -> None:
    check_step(judges, *planned(name, strategy=strategy))


@pytest.mark.parametrize("scheme", [{"one": 0.7, "three": 0.4, "point": 0.5}])
def test_static_schemes_draw_channels_that_are_not_nested(
    scheme: dict[str, float], planned: Planned, judges: ModuleType
) -> None:
    engine = check_step(judges, *planned("branches", "1MB", strategy="su", scheme=scheme))
    drawn = engine.channels.channels
    assert len(drawn["one"]) == 2 and len(drawn["three"]) == 1


@pytest.mark.parametrize("name", ["conv-bn-relu6-in-place", "residual-in-place", "branches", "grouped"])
def test_channels_last(name: str, planned: Planned, judges: ModuleType) -> None:
    net, plan, inputs, targets = planned(name, memory_format="channels_last")
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    check_step(judges, net, plan, inputs, targets)


@pytest.mark.parametrize("name", ["branches", "pools-and-dropout", "cross-attention"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_model_in_another_type(name: str, dtype: str, planned: Planned, judges: ModuleType) -> None:
    net, plan, inputs, targets = planned(name, dtype=dtype)
    cast = map_tensors(lambda x: x.to(getattr(torch, dtype)) if x.is_floating_point() else x, inputs)
    check_step(judges, net, plan, cast, targets, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize("name", sorted({*SOME, "mlp", "encoder-layer", "hand-attention", "squeeze-excite"}))
def test_autocast(name: str, planned: Planned, judges: ModuleType) -> None:
    net, plan, inputs, targets = planned(name, amp="bfloat16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine = check_step(judges, net, plan, inputs, targets, rtol=5e-2, atol=2e-2)
    assert all(parameter.grad.dtype == torch.float32 for parameter in engine.parameters() if parameter.grad is not None)
