"""Reading a plan, and seeing that its figures are those of its draws."""

from pathlib import Path

from trady.planner.errors import PlanError
from trady.planner.ledger import BatchedLedger
from trady.planner.plan import Plan
from trady.planner.sampling.schedule import draw


def load_plan(path: str | Path) -> Plan:
    """Read a plan whose counts and ledger are those of its first draw; nothing in the file is run.

    Args:
        path: What ``trady-plan -o`` wrote.

    Error:
        PlanError: The file is missing, is no plan, is of another version, or contradicts itself.
    """
    plan = Plan.load(path)
    check_plan(plan, f"Plan {path}")
    return plan


def check_plan(plan: Plan, subject: str = "The plan") -> None:
    """See that the draw of the first epoch and its ledger come out as written, within the budget.

    Args:
        plan: The plan.
        subject: What an error calls it.

    Raises:
        PlanError: They do not.
    """
    costs = BatchedLedger(plan.table)
    first = draw(plan, 0, ledger=costs)
    ledger = first.ledger(costs)
    spent = ledger.scopes.of(plan.settings.scope)
    problem = ""
    if first.counts(plan.table) != plan.counts:
        problem = "counts are not those of its first draw"
    elif ledger != plan.ledger:
        problem = "the ledger is not that of its counts"
    elif spent > plan.settings.budget_bytes:
        problem = f"its channels need {spent} B, above the budget of {plan.settings.budget_bytes} B"
    if problem:
        raise PlanError(f"{subject} contradicts itself: {problem}. Make it anew with trady-plan.")
