"""Who imports what: the engine stands on the planner alone, and reading its name is cheap."""

from pathlib import Path

import pytest

import trady.engine
from imports import HEAVY, REPOSITORY, files_of, imported, modules_after


@pytest.mark.parametrize("path", files_of("engine"), ids=lambda path: str(path.relative_to(REPOSITORY / "engine")))
def test_the_engine_stands_on_the_planner_alone(path: Path) -> None:
    ours = {name for name in imported(path) if name.split(".")[0] == "trady"}
    assert {name for name in ours if not name.startswith(("trady.planner", "trady.engine"))} == set()


def test_the_package_imports_nothing_heavy() -> None:
    assert modules_after("import trady.engine", HEAVY) == set()


def test_no_import_of_the_engine_brings_the_simulator() -> None:
    rooms = "import trady.engine.cli, trady.engine.engine, trady.engine.trainer.training"
    assert modules_after(rooms, ("trady.simulator", "trady.engine.engine")) == {"trady.engine.engine"}


def test_exports_are_named_and_lazy() -> None:
    assert set(dir(trady.engine)) >= {"Engine", "measure_step"}
    with pytest.raises(AttributeError, match="attribute nothing"):
        trady.engine.nothing  # type: ignore[attr-defined]  # noqa: B018
