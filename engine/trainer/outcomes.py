"""What a run has come to.

Held by ``tests/engine/trainer/test_training.py``.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trady.engine.runtime import Measurement
from trady.engine.trainer.checkpoints import Position
from trady.engine.trainer.run_options import RunOptions
from trady.planner.plan import Plan


@dataclass
class Score:
    """How well a model did.

    Args:
        loss: Mean loss of a sample.
        accuracy: Share of right answers, 0 to 1; ``None`` where the task has no classes.
    """

    loss: float
    accuracy: float | None

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: by accuracy, then by loss."""
        return (-1.0 if self.accuracy is None else self.accuracy, -self.loss)

    def figures(self, name: str) -> dict[str, float]:
        """For the log: ``train_loss``, ``train_accuracy``."""
        found = {f"{name}_loss": self.loss}
        return found if self.accuracy is None else found | {f"{name}_accuracy": self.accuracy}

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}" + ("" if self.accuracy is None else f", accuracy {self.accuracy:.2%}")


@dataclass
class History:
    """What a run has come to.

    Args:
        before: Score of the untrained head on the frozen model.
        after: Score of the last epoch.
        best: The best score of any epoch.
        best_epoch: That epoch.
        epoch_seconds: Seconds of each epoch, its evaluation included.
    """

    before: Score | None = None
    after: Score | None = None
    best: Score | None = None
    best_epoch: int = 0
    epoch_seconds: list[float] = field(default_factory=list)

    @classmethod
    def restored(cls, found: dict[str, Any]) -> "History":
        """From the plain values of a checkpoint."""
        scores = {name: Score(**found[name]) if found[name] else None for name in ("before", "after", "best")}
        return cls(**found | scores)


@dataclass(frozen=True)
class TrainingReport:
    """How a run ended.

    Args:
        folder: The run's folder.
        plan: Its plan.
        position: Where it stopped.
        options: Its options.
        history: Scores and seconds.
        head: What the score before training is the score of.
        evaluated_on: Which data was evaluated on.
        interrupted_by: Signal that stopped it; ``None`` where it came to its end.
        measurement: The planned ledger beside the measured one; ``None`` where it was interrupted.
        notes: What the reader should know.
    """

    folder: Path
    plan: Plan
    position: Position
    options: RunOptions
    history: History
    head: str
    evaluated_on: str
    interrupted_by: int | None = None
    measurement: Measurement | None = None
    notes: tuple[str, ...] = ()
