"""What the simulator says an epoch's step holds is what the engine measures when it runs the same plan and seed."""

from collections.abc import Iterable

import pytest
import torch

from cases import build
from trady.engine import Engine, measure_step
from trady.planner.models.training_step import Inputs
from trady.planner.plan.plan import Plan
from trady.planner.planning.planning import make_plan
from trady.planner.planning.replanning import replan
from trady.planner.priorities.calibration import calibrate, synthetic_batches
from trady.planner.tracing.tracing import trace
from trady.simulator import SimulationReport, simulate

EPOCHS = 3
SEED = 5


def planned(name: str) -> tuple[torch.nn.Module, Inputs, Plan]:
    model, inputs = build(name)
    traced = trace(model, inputs)
    priorities = calibrate(model, synthetic_batches(model, inputs, 3), traced=traced)
    return model, inputs, make_plan(model, inputs, traced=traced, priorities=priorities, budget="6KB", epochs=EPOCHS)


@pytest.mark.parametrize("policy", ["solver", "trady", "s-full-random", "d-det-rgn", "medyate"])
@pytest.mark.parametrize("name", ["residual", "encoder-layer"])
def test_simulated_lines_are_what_the_engine_measures(name: str, policy: str) -> None:
    """Line by line to the byte in every epoch; norms observed while training are the engine's own."""
    model, inputs, base = planned(name)
    plan = replan(base, policy)
    report = simulate(plan, epochs=EPOCHS, trials=1, seed=SEED)
    engine = Engine(model, plan, seed=SEED)
    engine.register(None)
    for epoch in range(1 if policy in ("d-det-rgn", "medyate") else EPOCHS):
        if epoch:
            engine.resample(epoch)
        measured = measure_step(engine, inputs).measured
        assert simulated(report, epoch, measured) == dict(measured)


def simulated(report: SimulationReport, epoch: int, lines: Iterable[str]) -> dict[str, float | None]:
    return {line: report.lines[line].mean[epoch] for line in lines}
