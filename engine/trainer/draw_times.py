"""When to draw anew: told by the position alone, so that a resumed run draws as if it had never stopped.

Held by ``tests/engine/trainer/test_training.py``.
"""

import itertools
from collections.abc import Iterator
from typing import Final, Literal

from trady.engine import Engine
from trady.engine.runtime import DrawReport
from trady.engine.trainer.checkpoints import Position
from trady.engine.trainer.planned_model import PlannedModel
from trady.engine.trainer.training_data import Source
from trady.planner.data import LabelledData
from trady.planner.models import Batch
from trady.planner.sampling import STRATEGIES, Observes

#: Batches that ``d-det-rgn`` takes its norms from.
_NORM_BATCHES: Final = 8


def draw_number(every: Literal["epoch", "never"] | int, position: Position) -> int | None:
    """Which draw is due at a position; ``None`` where none is.

    Args:
        every: ``epoch``, ``never``, or a number of optimizer steps.
        position: Where the run is, before a step.
    """
    if every == "never":
        return None
    if every == "epoch":
        return None if position.batch else position.epoch
    return None if position.step % every else position.step // every


def draw_anew(engine: Engine, number: int, planned: PlannedModel, training: Source, batch_size: int) -> DrawReport:
    """Draw the channels that train from now on; the one strategy that needs a dense pass gets batches for it."""
    batches = None
    if STRATEGIES[planned.plan.strategy.name].observes is Observes.DENSE_PASS:
        batches = _norm_batches(training, batch_size, engine.seed + number)
    return engine.resample(number, batches=batches and map(planned.placed, batches), loss=planned.loss)


def _norm_batches(training: Source, batch_size: int, seed: int) -> Iterator[Batch]:
    if isinstance(training, LabelledData):
        return training.batches(min(batch_size, len(training)), seed=seed, limit=_NORM_BATCHES)
    return itertools.islice(training, _NORM_BATCHES)
