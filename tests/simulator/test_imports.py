"""The simulator builds on the planner alone, and light uses stay light."""

from pathlib import Path

import pytest

from imports import imported, modules_after

SIMULATOR = Path(__file__).resolve().parents[2] / "simulator"
FILES = sorted(SIMULATOR.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_simulator_knows_the_planner_and_not_the_engine(path: Path) -> None:
    ours = {name for name in imported(path) if name.startswith("trady")}
    assert all(name.startswith(("trady.planner", "trady.simulator")) for name in ours)


def test_reading_the_package_imports_nothing_heavy() -> None:
    assert modules_after("import trady.simulator", ("torch", "numpy", "ortools", "pydantic")) == set()


def test_a_replay_needs_neither_torch_nor_ortools() -> None:
    code = "from trady.simulator import simulate, timeline, observe"
    assert modules_after(code, ("torch", "ortools", "matplotlib", "rich")) == set()
