"""Checkpoints: everything a run needs to go on as if it had never stopped; reading one runs no code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from trady.planner.errors import EngineError, TradyError
from trady.planner.files import leftover_prefix, open_atomically

CHECKPOINT_FILE: Final = "checkpoint.pt"
#: Plain weights at the end of a run, and at its best epoch.
TUNED_FILE: Final = "tuned.pt"
BEST_FILE: Final = "best.pt"
_VERSION: Final = 1


@dataclass(frozen=True)
class Position:
    """Where a run is.

    Args:
        epoch: Epoch under way, from 0.
        batch: Its batches that were trained on, of one process.
        step: Optimizer steps of the whole run.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class Checkpoint:
    """The state of a run at a position.

    Args:
        position: Where it is.
        model: The plain model's ``state_dict``.
        optimizer: The optimizer's.
        scaler: The gradient scaler's.
        draws: The engine's draws.
        generators: Random generators of each process, by rank: now, and when the epoch began.
        tally: Sums of the epoch so far, of each process, by rank.
        seconds: Seconds of the epoch so far.
        history: What the run's end reports: scores, seconds, the best so far.
        log_bytes: Size of the metrics file.
        machine: Versions and threads, to tell when they have changed.
    """

    position: Position
    model: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    draws: dict[str, Any]
    generators: list[dict[str, Any]]
    tally: list[dict[str, Any]]
    seconds: float
    history: dict[str, Any]
    log_bytes: int
    machine: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the last one: whole, or not at all.

    Raises:
        EngineError: It cannot be written; the last one is as it was.
    """
    path = folder / CHECKPOINT_FILE
    content = {"version": _VERSION, **vars(checkpoint), "position": vars(checkpoint.position)}
    content["model"] = dict(checkpoint.model)
    try:
        with open_atomically(path) as file:
            torch.save(content, file)
    except TradyError as error:
        kept = "The last checkpoint is whole" if path.exists() else "There is no checkpoint yet"
        raise EngineError(
            f"Checkpoint of epoch {checkpoint.position.epoch}, step {checkpoint.position.step}: {error} {kept}. "
            f"Free some space, then go on with trady-train --resume {folder}."
        ) from error


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the checkpoint of a run, tensors and plain values only; ``None`` where there is none yet.

    Raises:
        EngineError: The file is damaged, of another version, or names code.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.pop("version")
        if version != _VERSION:
            raise EngineError(f"Checkpoint {path} is of version {version!r}; this Trady reads version {_VERSION}.")
        return Checkpoint(**content | {"position": Position(**content["position"])})
    except EngineError:
        raise
    except Exception as error:  # zip, pickle and key errors of a file that is no checkpoint
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError(
            f"Checkpoint {path} cannot be read: {reason}. It is damaged or no checkpoint of trady-train: "
            "put a good copy in its place, or remove it to start from the beginning."
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files that a killed process left."""
    for name in (CHECKPOINT_FILE, TUNED_FILE, BEST_FILE):
        for path in folder.glob(f"{leftover_prefix(folder / name)}*"):
            path.unlink(missing_ok=True)


def save_weights(path: Path, model: Mapping[str, Tensor]) -> None:
    """Write plain weights, under the plain model's names.

    Error:
        TradyError: They cannot be written.
    """
    with open_atomically(path) as file:
        torch.save({name: tensor.detach().cpu() for name, tensor in model.items()}, file)
