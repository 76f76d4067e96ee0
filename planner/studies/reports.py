"""A study in words and a table, for the terminal: what the budgets buy, where it bends, what does not fit.

Held by ``tests/planner/studies/test_answers.py``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from trady.planner.reports import headed_table, heading, item, shorten
from trady.planner.studies.answers import Answers, bought
from trady.planner.studies.rows import Curve, StudyRow
from trady.planner.studies.runs import Study
from trady.planner.units import counted, format_bytes, format_share

#: Most curves and budgets of the table, and most sentences of a kind.
_MOST_CURVES: Final = 24
_MOST_BUDGETS: Final = 6
_MOST_SENTENCES: Final = 4
#: Width of a column of shares, and between the names and the first.
_COLUMN: Final = 9
_GAP: Final = 1


def study_report(study: Study) -> RenderableType:
    """What the rows say together."""
    answers = study.answers
    parts: list[RenderableType] = [Text(_headline(study)), ""]
    if answers.curves:
        parts += [heading(_table_heading(study)), _CurveTable(answers), Text(_MEASURE, style="dim"), ""]
        parts += [heading("Answers"), *(item(text) for text in answer_sentences(answers)), ""]
    problems = [*_infeasible_sentences(answers), *(f"Failed: {text}" for text in study.failures)]
    if problems:
        parts += [heading("What does not fit"), *(item(text) for text in problems)]
    return Group(*(parts[:-1] if parts[-1] == "" else parts))


_MEASURE: Final = "RGN of the channels expected to be drawn at least once by the last epoch, as a share of all."


def answer_sentences(answers: Answers) -> Iterator[str]:
    """The smallest budget for the target, the knee, the price of the next kilobyte, the best and the largest batch."""
    curves = list(answers.curves)[:_MOST_SENTENCES]
    if answers.target is not None:
        for curve in answers.curves:
            yield _target_sentence(answers, curve)
        return
    for curve in curves:
        yield from _knee_sentences(answers, curve)
    yield from _front_sentences(answers)
    if "batch_size" in answers.names.axes:
        yield from _batch_sentences(answers)


def _headline(study: Study) -> str:
    trained = sum(len(rows) for rows in study.answers.curves.values())
    text = f"{counted(len(study.rows), 'row')}: {trained:,} train something"
    infeasible = len(study.answers.infeasible)
    failed = sum(row.status == "failed" for row in study.rows)
    text += f", {infeasible:,} do not fit" if infeasible else ""
    return text + (f", {failed:,} failed" if failed else "") + "."


def _table_heading(study: Study) -> str:
    setting = study.rows[0].setting
    return f"RGN reached by epoch {setting.epochs}, by budget of scope {setting.scope.value}"


@dataclass(frozen=True)
class _CurveTable:
    """One line a curve, as many budgets across as there is room for; for a target, the budget it takes."""

    answers: Answers

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        curves = list(self.answers.curves.values())[:_MOST_CURVES]
        names = [self.answers.names.of(rows[0].setting) for rows in curves]
        room = options.max_width - max(map(len, names)) - _GAP
        budgets = _some(self.answers.budgets, min(_MOST_BUDGETS, max(2, room // _COLUMN)))
        if self.answers.target is not None:
            budgets = []
        across = [(format_bytes(budget), ">") for budget in budgets] or [("budget", ">"), ("reached", ">")]
        table = headed_table(("", "<"), *across)
        most = options.max_width - _COLUMN * len(across) - _GAP
        for name, rows in zip(names, curves, strict=True):
            table.add_row(shorten(name, most), *self._cells(rows, budgets))
        yield table
        left = len(self.answers.curves) - _MOST_CURVES
        if left > 0:
            yield Text(f"and {counted(left, 'more curve')} in the files", style="dim")

    @staticmethod
    def _cells(rows: Sequence[StudyRow], budgets: Sequence[int]) -> list[str]:
        if not budgets:
            return [format_bytes(rows[0].setting.budget_bytes), _share(rows[0])]
        within = ([row for row in rows if row.setting.budget_bytes <= budget] for budget in budgets)
        return [_share(found[-1] if found else None) for found in within]


def _share(row: StudyRow | None) -> str:
    return "-" if row is None else format_share(bought(row).rgn_reached, 1)


def _some(values: Sequence[int], most: int) -> list[int]:
    """The first, the last, and a few between."""
    if len(values) <= most:
        return list(values)
    return [values[round(step * (len(values) - 1) / (most - 1))] for step in range(most)]


def _target_sentence(answers: Answers, curve: Curve) -> str:
    row = answers.curves[curve][0]
    name, target = answers.names.of(row.setting), answers.target or 0.0
    reached = bought(row).rgn_reached
    if reached < target:
        return f"{name}: no budget reaches {format_share(target, 0)}; all channels reach {format_share(reached)}."
    return (
        f"{name}: {format_bytes(row.setting.budget_bytes)} is the smallest budget, to 1 %, that reaches "
        f"{format_share(target, 0)} (it reaches {format_share(reached)})."
    )


def _knee_sentences(answers: Answers, curve: Curve) -> Iterator[str]:
    row = answers.knee(curve)
    if row is None:
        return
    found = bought(row)
    yield (
        f"{answers.names.of(row.setting)}: the knee is at {format_bytes(row.setting.budget_bytes)}, which reaches "
        f"{format_share(found.rgn_reached, 1)} with {len(found.layers)} of {found.num_layers} layers; there the next "
        f"kilobyte adds {format_share(found.next_kilobyte, 3)} of the value."
    )


def _front_sentences(answers: Answers) -> Iterator[str]:
    """Which setting is best at a small, a middle and a large budget."""
    if not answers.names.axes:
        return
    best = {}
    for budget in _some(answers.budgets, 3):
        rows = [row for row in answers.rows if row.bought and row.setting.budget_bytes <= budget]
        if rows:
            best[budget] = max(rows, key=lambda row: (bought(row).rgn_reached, -bought(row).used_bytes))
    for budget, row in best.items():
        yield (
            f"Within {format_bytes(budget)} the most is reached by {answers.names.of(row.setting)}: "
            f"{format_share(bought(row).rgn_reached, 1)}."
        )


def _batch_sentences(answers: Answers) -> Iterator[str]:
    """The largest batch size under the smallest budgets, where it is not simply the largest asked for."""
    asked = max(row.setting.batch_size for row in answers.rows)
    short = [row for row in answers.largest_batches() if row.setting.batch_size < asked]
    beside = [axis for axis in answers.names.axes if axis != "batch_size"]
    for row in sorted(short, key=lambda row: row.setting.budget_bytes)[:_MOST_SENTENCES]:
        name = f" ({answers.names.of(row.setting, beside)})" if beside else ""
        yield (
            f"Within {format_bytes(row.setting.budget_bytes)} the largest batch that trains something is "
            f"{row.setting.batch_size}{name}."
        )


def _infeasible_sentences(answers: Answers) -> Iterator[str]:
    """For each curve that misses budgets: how many, what it takes, and the cheapest change."""
    missing: dict[Curve, list[StudyRow]] = {}
    for row in answers.infeasible:
        missing.setdefault(row.setting.curve, []).append(row)
    for rows in list(missing.values())[:_MOST_SENTENCES]:
        worst = max(rows, key=lambda row: row.setting.budget_bytes)
        needed = format_bytes(worst.needed_bytes or 0)
        change = (
            f"with {worst.remedies[0].change} {format_bytes(worst.remedies[0].needed_bytes)} are enough"
            if worst.remedies
            else "no smaller batch, shorter type or plainer optimizer is enough"
        )
        yield (
            f"{answers.names.of(worst.setting)}: {_budgets_up_to(len(rows), worst)} nothing: it takes {needed}; "
            f"{change}."
        )
    left = len(missing) - _MOST_SENTENCES
    if left > 0:
        yield f"and {left} more, with what each takes, in the files."


def _budgets_up_to(number: int, worst: StudyRow) -> str:
    size = format_bytes(worst.setting.budget_bytes)
    return f"{size} trains" if number == 1 else f"{number} budgets up to {size} train"
