"""Run by the tests in processes of their own: predicted and measured ledgers of toys, as JSON on the last line."""

import json
import sys
from typing import Any

from cases import build
from trady.engine import Engine
from trady.planner.planning.planning import make_plan
from trady.planner.priorities.calibration import uniform_priorities
from trady.planner.tracing.tracing import trace


def ledgers(name: str, optimizer: str) -> dict[str, Any]:
    """Lines of a plan for all channels but the workspace, and what the peak is predicted and measured as."""
    model, inputs = build(name)
    traced = trace(model, inputs)
    options: dict[str, Any] = {
        "traced": traced,
        "priorities": uniform_priorities(traced, "test"),
        "optimizer": optimizer,
    }
    plan = make_plan(model, inputs, budget="1MB", **options)
    found = Engine(model, plan).measure(inputs)
    return {
        "lines": plan.ledger.lines.model_dump(exclude={"workspace"}),
        "measured": dict(found.measured),
        "predicted_peak": plan.ledger.scopes.peak,
        "measured_peak": found.peak_bytes,
    }


if __name__ == "__main__":
    print(json.dumps({name: ledgers(name, "adam") for name in sys.argv[1:]}))
