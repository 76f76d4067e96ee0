"""What happened, for people and for programs: ``metrics.jsonl``, and TensorBoard where it is installed."""

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from trady.planner.errors import EngineError

METRICS_FILE: Final = "metrics.jsonl"
TENSORBOARD_FOLDER: Final = "tensorboard"


class MetricsLog:
    """Lines of figures; a run that is resumed goes on where its checkpoint was.

    Args:
        path: The file; lines are added to it.
        writer: TensorBoard's writer, or ``None``.
    """

    def __init__(self, path: Path, writer: Any = None) -> None:
        self._path = path
        self._writer = writer
        self._file = path.open("ab")

    def write(self, kind: str, *, step: int, **figures: object) -> None:
        """Add a line of figures; numbers go to TensorBoard too.

        Args:
            kind: ``start``, ``draw``, ``epoch`` or ``end``.
            step: Optimizer steps done.
            figures: What to tell.

        Raises:
            EngineError: The disk takes no more.
        """
        line = json.dumps({"kind": kind, "step": step, **figures}, allow_nan=False)
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise EngineError(_unwritable(self._path, error)) from error
        if self._writer is not None:
            for name, value in figures.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def show(self, step: int, **figures: float) -> None:
        """Figures of a single step: TensorBoard only."""
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"step/{name}", value, step)

    def written_bytes(self) -> int:
        """Size of the file, once all of it is on the disk.

        Raises:
            EngineError: The disk takes no more.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise EngineError(_unwritable(self._path, error)) from error
        return self._file.tell()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
        self._file.close()


@contextmanager
def opened_log(folder: Path, *, keep_bytes: int = 0, step: int = 0, tensorboard: bool = True) -> Iterator[MetricsLog]:
    """The log of a run; what a killed process wrote after its last checkpoint is cut off.

    Args:
        folder: The run's folder.
        keep_bytes: Size of the file when the checkpoint was made.
        step: Optimizer steps done then.
        tensorboard: Write for TensorBoard too, where it is installed.

    Raises:
        EngineError: The file cannot be written.
    """
    path = folder / METRICS_FILE
    try:
        path.touch()
        if path.stat().st_size > keep_bytes:
            os.truncate(path, keep_bytes)
        log = MetricsLog(path, _writer(folder, step) if tensorboard else None)
    except OSError as error:
        raise EngineError(_unwritable(path, error)) from error
    try:
        yield log
    finally:
        log.close()


def has_tensorboard() -> bool:
    """Whether TensorBoard is installed."""
    return importlib.util.find_spec("tensorboard") is not None


def _writer(folder: Path, step: int) -> Any:
    if not has_tensorboard():
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=step)


def _unwritable(path: Path, error: OSError) -> str:
    return (
        f"Metrics {path} cannot be written: {error.strerror}. Free some space, then go on with "
        f"trady-train --resume {path.parent}; the last checkpoint is whole."
    )
