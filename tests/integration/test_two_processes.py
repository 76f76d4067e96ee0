"""Two processes with half of each batch against one process with all of it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from trady.engine import Engine
from trady.planner.errors import EngineError

WORKER = Path(__file__).with_name("parallel_runs.py")


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location(WORKER.stem, WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runs = load_worker()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw in all runs."""
    folder = tmp_path_factory.mktemp("two")
    processes = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), "2", str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=500)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", runs.RUNS)
def test_two_processes_train_as_one(name: str, two: list[dict[str, Any]]) -> None:
    first, second = (records[name] for records in two)
    alone = runs.run(0, 1, **runs.RUNS[name])
    assert first["channels"] == second["channels"] == alone["channels"]
    assert len({str(drawn) for drawn in first["channels"]}) == runs.EPOCHS
    torch.testing.assert_close(first["norms"], alone["norms"], rtol=1e-5, atol=0)
    for ours, theirs, expected in zip(first["weights"], second["weights"], alone["weights"], strict=True):
        for key, weight in ours.items():
            assert torch.equal(weight, theirs[key]), key
            torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["engine", "inside"])
def test_a_wrapper_older_than_the_slices_is_refused(name: str, two: list[dict[str, Any]]) -> None:
    for records in two:
        assert re.search(
            r"made before the draw of epoch \d, .* of \d parameters would not be .* Wrap again after each draw",
            records[f"refused {name}"]["error"],
        )


@pytest.mark.slow
def test_a_sharded_weight_is_not_drawn_from(two: list[dict[str, Any]]) -> None:
    for records in two:
        assert re.search(
            r"Weight '\d.weight' is drawn from and sharded.* ignored_params", records["refused sharded whole"]["error"]
        )


def test_data_parallel_is_refused() -> None:
    """``torch.nn.DataParallel`` marks its copies so; it makes them only where there are several devices."""
    engine = Engine(runs.network(), runs.plan_for("solver"))
    with pytest.raises(EngineError, match=r"DataParallel copies the model .*DistributedDataParallel"):
        engine._replicate_for_data_parallel()
    model = runs.network()
    engine = Engine.attach(model, runs.plan_for("solver"))
    replica = model._replicate_for_data_parallel()
    with pytest.raises(EngineError, match="DataParallel copies the model"):
        replica(torch.randn(2, 3, 8, 8))
    engine.detach()
    assert replica(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_an_engine_inside_another_module_loads_what_it_saved() -> None:
    outer = runs.Inside(Engine(runs.network(0), runs.plan_for("solver")))
    other = runs.Inside(Engine(runs.network(1), runs.plan_for("solver")))
    saved = outer.state_dict()
    assert [key.removeprefix("engine.") for key in saved] == list(outer.engine.model.state_dict())
    other.load_state_dict(saved)
    torch.testing.assert_close(other.state_dict(), saved, rtol=0, atol=0)
    for ours, theirs in zip(other.engine.parameters(), outer.engine.parameters(), strict=True):
        other.engine.state_dict()
        assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({key: saved[key] for key in list(saved)[1:]})
