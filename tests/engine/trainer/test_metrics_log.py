"""The log: lines of JSON, cut back to the checkpoint, TensorBoard beside it."""

import json
from pathlib import Path

import pytest

from trady.engine.trainer.metrics_log import METRICS_FILE, TENSORBOARD_FOLDER, MetricsLog, opened_log
from trady.planner.errors import EngineError


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_lines_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    with opened_log(tmp_path, tensorboard=False) as log:
        log.write("epoch", step=3, train_loss=0.5)
        size = log.written_bytes()
        log.write("epoch", step=6, train_loss=0.4)
    with opened_log(tmp_path, keep_bytes=size, step=3, tensorboard=False) as log:
        log.write("epoch", step=6, train_loss=0.3)
    assert lines(tmp_path) == [
        {"kind": "epoch", "step": 3, "train_loss": 0.5},
        {"kind": "epoch", "step": 6, "train_loss": 0.3},
    ]


def test_a_full_disk_is_told() -> None:
    log = MetricsLog(Path("/dev/full"))
    with pytest.raises(EngineError, match=r"No space left on device. Free some space, then go on with"):
        log.write("epoch", step=1, train_loss=1.0)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match=r"cannot be written: No such file"),
        opened_log(tmp_path / "none", tensorboard=False),
    ):
        pass


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened_log(tmp_path) as log:
        log.write("epoch", step=3, train_loss=0.5, notes=["no number"])
        log.show(3, learning_rate=0.1)
    found = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER)).Reload()
    assert found.Tags()["scalars"] == ["epoch/train_loss", "step/learning_rate"]
    assert found.Scalars("epoch/train_loss")[0].step == 3
