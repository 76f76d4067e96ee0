"""Checkpoints: whole or not at all, plain values only, generators to the bit."""

import pickle
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from trady.engine.trainer.checkpoints import (
    CHECKPOINT_FILE,
    Checkpoint,
    Position,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
    save_weights,
)
from trady.engine.trainer.reproducing import (
    deterministic_algorithms,
    generator_states,
    machine_description,
    seed_generators,
    set_generator_states,
)
from trady.planner.errors import EngineError, TradyError

Limit = Callable[[int], AbstractContextManager[None]]


def checkpoint(elements: int = 10, step: int = 7) -> Checkpoint:
    states = generator_states()
    return Checkpoint(
        position=Position(1, 2, step),
        model={"weight": torch.arange(elements, dtype=torch.float32)},
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        scaler={},
        draws={"epoch": 1, "observed": {"conv": torch.tensor([1.0, float("nan")])}},
        generators=[{"now": states, "epoch": states}],
        tally=[{"loss_sum": 0.1}],
        seconds=1.5,
        history={"before": None, "epoch_seconds": [1.0]},
        log_bytes=42,
        machine=machine_description(),
    )


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    saved = checkpoint()
    save_checkpoint(tmp_path, saved)
    read = load_checkpoint(tmp_path)
    assert read is not None
    assert read.position == Position(1, 2, 7)
    assert torch.equal(read.model["weight"], saved.model["weight"])
    assert read.optimizer["param_groups"] == saved.optimizer["param_groups"]
    assert (read.history, read.log_bytes, read.machine) == (saved.history, 42, saved.machine)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_there_is_none_yet(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


def test_generators_go_on_to_the_bit(tmp_path: Path) -> None:
    seed_generators(5, rank=0)
    save_checkpoint(tmp_path, checkpoint())
    expected = draws()
    seed_generators(5, rank=1)
    assert draws() != expected
    read = load_checkpoint(tmp_path)
    assert read is not None
    set_generator_states(read.generators[0]["now"])
    assert draws() == expected


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path, files_of_at_most: Limit) -> None:
    save_checkpoint(tmp_path, checkpoint(step=7))
    with (
        files_of_at_most(100_000),
        pytest.raises(EngineError, match=r"step 8: .*File too large.*last checkpoint is whole. Free some space"),
    ):
        save_checkpoint(tmp_path, checkpoint(1_000_000, step=8))
    read = load_checkpoint(tmp_path)
    assert read is not None and read.position.step == 7
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_a_full_disk_at_the_end_is_told(tmp_path: Path, files_of_at_most: Limit) -> None:
    with files_of_at_most(1000), pytest.raises(TradyError, match=r"tuned.pt cannot be written: File too large"):
        save_weights(tmp_path / "tuned.pt", {"weight": torch.zeros(1_000_000)})
    assert not list(tmp_path.iterdir())


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path, ("never",))


@pytest.mark.parametrize("content", [b"", b"no zip", pickle.dumps({"version": 1})])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot be read: .* put a good copy in its place"):
        load_checkpoint(tmp_path)


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(10_000))
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(EngineError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    torch.save({"version": 1, "position": _Code()}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(EngineError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_another_version_is_told(tmp_path: Path) -> None:
    torch.save({"version": 99}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(EngineError, match=r"is of version 99; this Trady reads version 1"):
        load_checkpoint(tmp_path)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (f".{CHECKPOINT_FILE}.abc", ".tuned.pt.x1", ".mine.txt", "notes"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".mine.txt", "notes"}


def test_determinism_is_undone_on_any_exit() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="stop"), deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError("stop")
    assert torch.are_deterministic_algorithms_enabled() is before
