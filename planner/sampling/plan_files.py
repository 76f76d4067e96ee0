"""Reading a plan, and seeing that its figures are those of its draws.

Held by ``tests/planner/plan/test_plan.py``.
"""

from pathlib import Path

from trady.planner.errors import PlanError
from trady.planner.ledger import BatchedLedger
from trady.planner.plan import Plan
from trady.planner.sampling.schedule import draw


def load_plan(path: str | Path) -> Plan:
    """Read a plan whose counts and ledger are those of its first draw; nothing in the file is run.

    Args:
        path: What ``trady-plan -o`` wrote.

    Returns:
        The plan, its figures held against its own draw.

    Error:
        PlanError: The file is missing, is no plan, is of another version, or contradicts itself.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> from trady.planner import make_plan
        >>> plan = make_plan(net, pictures, budget="4KB", optimizer="sgd")
        >>> plan.save("plan.json")
        >>> load_plan("plan.json") == plan
        True
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
