"""Plan files of the first schema load for ever: these were written by the version before the shelves."""

from pathlib import Path

import pytest

from trady.planner import Plan, load_plan
from trady.planner.ledger import BatchedLedger
from trady.planner.sampling import draw

FILES = sorted((Path(__file__).parent / "files").glob("*.json"))
#: Strategies that fill the budget anew each epoch draw by other words since: their plans are to be made anew.
FILLED = {"trady", "medyate"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_the_first_schema_load(path: Path) -> None:
    plan = Plan.load(path)
    assert plan.schema_version == 1 and plan.settings.machine is None
    assert BatchedLedger(plan.table).of(plan.counts).lines.model_dump(exclude={"workspace"}) == (
        plan.ledger.lines.model_dump(exclude={"workspace"})
    )


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in FILLED], ids=lambda path: path.stem)
def test_their_draws_are_those_that_were_planned(path: Path) -> None:
    plan = load_plan(path)
    assert draw(plan, 0).counts(plan.table) == plan.counts
    assert plan.solver.given_up == 0.0
