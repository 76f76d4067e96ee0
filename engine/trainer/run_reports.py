"""What a run tells at its end: scores before and after, time, and the planned ledger beside the measured one.

Held by ``tests/engine/trainer/test_training.py``.
"""

import statistics
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trady.engine.trainer.checkpoints import BEST_FILE, TUNED_FILE
from trady.engine.trainer.outcomes import Score, TrainingReport


def training_report(report: TrainingReport) -> RenderableType:
    """Everything, for a person."""
    parts: list[RenderableType] = [_score_table(report), Text(_time_in_words(report))]
    if report.measurement is not None:
        parts += [Text(""), report.measurement]
    parts += [Text(f"Note: {note}") for note in report.notes]
    parts.append(Text(f"Weights: {report.folder / TUNED_FILE}{_best_in_words(report)}"))
    return Group(*parts)


def training_json(report: TrainingReport) -> dict[str, object]:
    """Everything, for a program."""
    history = report.history
    return {
        "folder": str(report.folder),
        "epochs": report.position.epoch,
        "steps": report.position.step,
        "before": _figures(history.before),
        "before_is": report.head,
        "after": _figures(history.after),
        "best": _figures(history.best),
        "best_epoch": history.best_epoch + 1 if history.best else None,
        "evaluation": report.evaluated_on,
        "seconds_per_epoch": _median(history.epoch_seconds),
        "measurement": None if report.measurement is None else report.measurement.as_json(),
        "notes": list(report.notes),
    }


def interruption_text(report: TrainingReport) -> str:
    """Where a run stopped, and how to go on."""
    position = report.position
    where = f"epoch {position.epoch + 1}, batch {position.batch}, step {position.step}"
    saved = "This point is saved" if position.step else "Nothing is saved yet"
    return f"Interrupted at {where}. {saved}. Go on with: trady-train --resume {report.folder}"


def _score_table(report: TrainingReport) -> Table:
    table = Table(title="Scores", title_justify="left", box=None, title_style="bold", pad_edge=False)
    for heading in ("", "accuracy", "loss"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, score in _named_scores(report):
        accuracy = "-" if score.accuracy is None else f"{score.accuracy:.2%}"
        table.add_row(name, accuracy, f"{score.loss:.4f}")
    if not table.row_count:
        table.add_row(report.evaluated_on, "-", "-")
    else:
        table.caption = report.evaluated_on
        table.caption_justify = "left"
    return table


def _named_scores(report: TrainingReport) -> Iterator[tuple[str, Score]]:
    history = report.history
    if history.before is not None:
        yield f"before ({report.head})", history.before
    if history.after is not None:
        yield f"after {report.position.epoch} epochs", history.after
    if history.best is not None and history.best != history.after:
        yield f"best (epoch {history.best_epoch + 1})", history.best


def _time_in_words(report: TrainingReport) -> str:
    seconds = report.history.epoch_seconds
    return f"{report.position.step} steps; {_median(seconds):.1f} s an epoch (median), {sum(seconds):.0f} s in all."


def _best_in_words(report: TrainingReport) -> str:
    return f"; of the best epoch: {report.folder / BEST_FILE}" if report.history.best is not None else ""


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds) if seconds else 0.0


def _figures(score: Score | None) -> dict[str, float | None] | None:
    return None if score is None else {"loss": score.loss, "accuracy": score.accuracy}
