"""Who imports what: data flows down the page of DESIGN, and light commands stay light."""

from pathlib import Path

import pytest

import trady.planner
from imports import HEAVY, files_of, imported, modules_after

FILES = files_of("planner")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_planner_knows_neither_engine_nor_simulator(path: Path) -> None:
    assert not any(name.startswith(("trady.engine", "trady.simulator")) for name in imported(path))


def test_only_the_solver_imports_ortools_solver() -> None:
    found = {path.stem for path in FILES if any(name.startswith("ortools.") for name in imported(path))}
    assert found == {"cp_sat", "cost_expressions"}


@pytest.mark.parametrize(
    "room",
    [
        "units",
        "options",
        "files",
        "errors",
        "ledger.cost_rules",
        "ledger.cost_table",
        "ledger.peak",
        "tracing.gradient_lifetimes",
        "lean.residual_rules",
    ],
)
def test_arithmetic_rooms_need_no_torch(room: str) -> None:
    assert modules_after(f"import trady.planner.{room}", ("torch", "ortools", "networkx")) == set()


def test_the_package_imports_nothing_heavy() -> None:
    assert modules_after("import trady.planner", HEAVY) == set()


def test_exports_are_named_and_lazy() -> None:
    assert set(dir(trady.planner)) >= {"Plan", "Priorities", "calibrate", "make_plan", "trace"}
    assert modules_after("from trady.planner import Plan, Priorities", ("torch", "ortools", "networkx")) == set()
    with pytest.raises(AttributeError, match="attribute nothing"):
        trady.planner.nothing  # type: ignore[attr-defined]  # noqa: B018
