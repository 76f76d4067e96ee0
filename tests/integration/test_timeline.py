"""Timelines against the allocator, in real steps of the engine: the peak, and the peak of each pass by itself."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from cases import build
from trady.engine import Engine
from trady.planner.costs.allocator import AllocationMeter
from trady.planner.ledger.step_timeline import MomentKind
from trady.planner.models.training_step import call_model, step_loss, synthetic_targets
from trady.planner.plan.plan import Plan
from trady.planner.planning.planning import make_plan
from trady.planner.priorities.calibration import uniform_priorities
from trady.planner.tracing.tracing import trace
from trady.simulator import Timeline, timeline

#: Scalars, and masks rounded up to words: what a toy of a few kilobytes may be off.
_FEW_BYTES = 1024
FORWARD = (MomentKind.FORWARD, MomentKind.RECORDING)
BACKWARD = (MomentKind.BACKWARD, MomentKind.SLICE)
_NETWORKS = [
    ("mobilenet_v2", {"budget": "256KB"}),
    ("resnet18", {"budget": "40MB", "optimizer": "adam"}),
    ("swin_t", {"budget": "30MB"}),
]


def planned(model: nn.Module, inputs: Any, **options: Any) -> Plan:
    traced = trace(model, inputs)
    return make_plan(model, inputs, traced=traced, priorities=uniform_priorities(traced, "test"), **options)


def peak_of(found: Timeline, *kinds: MomentKind) -> int:
    return max(moment.total_bytes for moment in found.moments if moment.kind in kinds)


def measured_passes(engine: Engine, inputs: Any) -> tuple[int, int, int]:
    """Peaks of the forward and the backward pass, and what lives between them, in bytes above what lives before."""

    def forward() -> torch.Tensor:
        return step_loss(call_model(engine, inputs), targets, None)

    engine.train()
    with torch.no_grad():
        targets = synthetic_targets(call_model(engine, inputs))
    with AllocationMeter() as alone:
        loss = forward()
    del loss
    with AllocationMeter() as meter:
        value = meter.lap(forward)
        assert isinstance(value, torch.Tensor)
        meter.lap(value.backward)
    up, back = meter.lap_peaks()
    return up, alone.left_bytes + back, alone.left_bytes


@pytest.mark.parametrize("strategy", ["solver", "trady"])
@pytest.mark.parametrize("name", ["self-attention", "squeeze-excite", "encoder-layer", "conv-bn-relu"])
def test_the_peak_of_a_toys_timeline_is_the_allocators(name: str, strategy: str) -> None:
    model, inputs = build(name)
    plan = planned(model, inputs, budget="4KB", strategy=strategy, optimizer="momentum")
    measured = Engine(model, plan).measure(inputs).peak_bytes
    assert measured <= timeline(plan).peak_bytes <= measured / 0.97 + _FEW_BYTES


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_peak_of_a_later_epoch_is_the_allocators(epoch: int) -> None:
    model, inputs = build("depthwise-separable")
    plan = planned(model, inputs, budget="6KB", strategy="trady")
    engine = Engine(model, plan, seed=3)
    engine.register(None)
    engine.resample(epoch)
    measured, found = engine.measure(inputs).peak_bytes, timeline(plan, epoch=epoch, seed=3)
    assert measured <= found.peak_bytes <= measured / 0.97 + _FEW_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "options"), _NETWORKS)
def test_each_pass_of_a_network_stays_below_its_timeline(arch: str, options: dict[str, Any]) -> None:
    """The pass with the peak and what lives between the passes are near, too; elsewhere bounds stand for kernels.

    A first step begins without optimizer state: it is taken off what is predicted.
    """
    torch.manual_seed(0)
    model, inputs = getattr(torchvision.models, arch)(), torch.randn(2, 3, 224, 224)
    plan = planned(model, inputs, **options)
    found = timeline(plan)
    start = found.moments[0].num_bytes
    lasting = sum(start[name] for name in ("weights", "inputs", "active_weights", "draw_index"))
    state = start["optimizer_state"] + start["always_trained"]
    forward, backward = peak_of(found, *FORWARD) - state, peak_of(found, *BACKWARD) - state
    between = [moment for moment in found.moments if moment.kind is MomentKind.FORWARD][-1].total_bytes - state
    measured = measured_passes(Engine(model, plan), inputs)
    up, back, left = (lasting + num_bytes for num_bytes in measured)
    assert up <= forward and back <= backward and left <= between <= left / 0.97
    assert max(forward, backward) <= max(up, back) / 0.97
