"""The folder of a run: made once, gone on from as often as needed.

Held by ``tests/engine/trainer/test_training.py``.
"""

from pathlib import Path
from typing import Final

from trady.engine.trainer.checkpoints import remove_leftovers
from trady.engine.trainer.run_options import RunOptions
from trady.planner.errors import EngineError
from trady.planner.plan import Plan

PLAN_FILE: Final = "plan.json"


def open_folder(folder: Path, plan: Plan, options: RunOptions, resume: bool) -> None:
    """Make a run's folder with its plan and options, or clear what a killed process left in it.

    Args:
        folder: The folder.
        plan: The plan.
        options: The options.
        resume: Whether the run is there already.

    Raises:
        EngineError: The folder is not empty, or cannot be made.

    Error:
        TradyError: The folder is not empty, or cannot be made or written.
    """
    if resume:
        remove_leftovers(folder)
        return
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise EngineError(
                f"Output {folder} is not empty. Go on with its run by trady-train --resume {folder}, "
                "or choose another -o."
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"Output {folder} cannot be made: {error.strerror}. Choose another place.") from error
    plan.save(folder / PLAN_FILE)
    options.save(folder)


def check_processes(options: RunOptions, size: int) -> None:
    """A run goes on with as many processes as it began with: its global batch depends on them.

    Raises:
        EngineError: There are more, or fewer.
    """
    if options.processes != size:
        raise EngineError(
            f"The run was started with {options.processes} processes, not {size}, so its global batch is of "
            f"{options.processes * options.batch_size} samples. "
            f"Go on with torchrun --nproc-per-node {options.processes} -m trady.engine.trainer.training --resume ..."
        )
