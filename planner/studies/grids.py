"""The axes of a study: ranges and lists as text, and the settings they span. No torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Self, TypedDict

from trady.planner.errors import StudyError
from trady.planner.options import DEFAULT_OPTIMIZER, DType, NormMode, OptimizerKind, Scope, choose
from trady.planner.studies.rows import Setting
from trady.planner.units import parse_bytes

#: Budgets between the smallest that trains anything and what training everything takes, where none are asked for.
DEFAULT_BUDGETS: Final = 24
#: A grid of more rows has to be asked for twice.
MOST_ROWS: Final = 100_000


class AxesKeywords(TypedDict, total=False):
    """:class:`Axes` as a user gives them."""

    budgets: str | Sequence[int | str] | None
    batch_sizes: str | Sequence[int]
    optimizers: Sequence[OptimizerKind | str]
    dtypes: Sequence[DType | str | None]
    inputs: Sequence[str]
    norms: Sequence[NormMode | str]


@dataclass(frozen=True)
class Axes:
    """What a study varies; every combination is a row.

    Args:
        inputs: Shapes of one sample, ``3x224x224``; ``""`` for the model's own.
        norms: What norms with running statistics do.
        dtypes: Element types; ``None`` leaves the model's own.
        batch_sizes: Samples of a micro-batch.
        optimizers: What is kept for each trained element.
        budgets: Bytes, ascending; empty where each column finds its own.
    """

    inputs: tuple[str, ...] = ("",)
    norms: tuple[NormMode, ...] = (NormMode.FROZEN,)
    dtypes: tuple[DType | None, ...] = (None,)
    batch_sizes: tuple[int, ...] = (1,)
    optimizers: tuple[OptimizerKind, ...] = (DEFAULT_OPTIMIZER,)
    budgets: tuple[int, ...] = ()

    @classmethod
    def read(cls, options: "AxesKeywords") -> Self:
        """From values as a user gives them: ranges and lists also as text.

        Returns:
            The axes.

        Error:
            StudyError: A range is empty or reversed.
            StrategyError: A name is unknown.
            UnitError: A budget is no size.
        """
        budgets = options.get("budgets")
        return cls(
            inputs=tuple(options.get("inputs", ("",))),
            norms=tuple(choose(NormMode, norm, "Norm mode") for norm in options.get("norms", (NormMode.FROZEN,))),
            dtypes=tuple(
                None if dtype is None else choose(DType, dtype, "Element type")
                for dtype in options.get("dtypes", (None,))
            ),
            batch_sizes=parse_batch_sizes(options.get("batch_sizes", (1,))),
            optimizers=tuple(
                choose(OptimizerKind, name, "Optimizer") for name in options.get("optimizers", (DEFAULT_OPTIMIZER,))
            ),
            budgets=() if budgets is None else parse_budgets(budgets),
        )

    def num_rows(self, num_models: int) -> int:
        """Rows for so many models."""
        steps = (self.inputs, self.norms, self.dtypes, self.batch_sizes, self.optimizers)
        return num_models * math.prod(map(len, steps)) * (len(self.budgets) or DEFAULT_BUDGETS)

    def check_size(self, num_models: int, confirmed: bool) -> None:
        """Refuse a grid that is larger than anyone means, unless it is confirmed.

        Raises:
            StudyError: With the number of rows.
        """
        rows = self.num_rows(num_models)
        if rows > MOST_ROWS and not confirmed:
            raise StudyError(
                f"The grid has {rows:,} rows, above {MOST_ROWS:,}. Take fewer values of an axis, or confirm with --yes."
            )

    def settings(self, model: str, *, scope: Scope, epochs: int) -> Iterator[Setting]:
        """Every row of a model; none where its columns find their own budgets."""
        axes = (self.inputs, self.norms, self.dtypes, self.batch_sizes, self.optimizers, self.budgets)
        for input_shape, norm, dtype, batch_size, optimizer, budget in product(*axes):
            yield Setting(
                model=model,
                input=input_shape,
                norm=norm,
                dtype=dtype,
                batch_size=batch_size,
                optimizer=optimizer,
                scope=scope,
                budget_bytes=budget,
                epochs=epochs,
            )


def parse_budgets(text: str | Sequence[int | str]) -> tuple[int, ...]:
    """Budgets in bytes, ascending: ``64KB,256KB``, or ``32KB:4MB:24`` for 24 sizes of equal ratio; or both.

    Error:
        StudyError: A range is empty or reversed, or has no number of sizes.
        UnitError: A size cannot be read.
    """
    parts = text.split(",") if isinstance(text, str) else text
    return tuple(sorted({budget for part in parts for budget in _sizes(part)}))


def parse_batch_sizes(text: str | Sequence[int]) -> tuple[int, ...]:
    """Batch sizes, ascending: ``1,8,32``, or ``1:64:7`` for 7 of equal ratio.

    Error:
        StudyError: One is no whole number above 0, or a range is empty or reversed.
    """
    if not isinstance(text, str):
        return tuple(sorted({_whole(str(size), "Batch size") for size in text}))
    found: set[int] = set()
    for part in text.split(","):
        ends = part.split(":")
        if len(ends) == 1:
            found.add(_whole(part, "Batch size"))
        else:
            low, high, number = _range(part, "Batch sizes", "1:64:7")
            found.update(_of_equal_ratio(_whole(low, "Batch size"), _whole(high, "Batch size"), number, part))
    return tuple(sorted(found))


def default_budgets(least: int, most: int) -> tuple[int, ...]:
    """Sizes of equal ratio from the smallest budget that trains anything to what training everything takes."""
    rounded = {_rounded_up(size) for size in _of_equal_ratio(least, max(least, most), DEFAULT_BUDGETS, "")}
    return tuple(sorted(rounded))


def _sizes(part: int | str) -> list[int]:
    if isinstance(part, int) or ":" not in part:
        return [parse_bytes(part)]
    low, high, number = _range(part, "Budgets", "32KB:4MB:24")
    return _of_equal_ratio(parse_bytes(low), parse_bytes(high), number, part)


def _range(text: str, subject: str, example: str) -> tuple[str, str, int]:
    ends = text.split(":")
    if len(ends) != 3:
        raise StudyError(f"{subject} {text!r} are no range. Give first:last:number, for instance {example}.")
    return ends[0], ends[1], _whole(ends[2], f"Number of values of the range {text!r}")


def _of_equal_ratio(low: int, high: int, number: int, text: str) -> list[int]:
    if high < low:
        raise StudyError(f"Range {text!r} is reversed: it ends below its beginning. Give the smaller end first.")
    if number == 1:
        return [low]
    return [round(low * (high / low) ** (step / (number - 1))) for step in range(number)]


def _whole(text: str, subject: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise StudyError(f"{subject} must be a whole number above 0, got {text!r}.")
    return int(text)


def _rounded_up(size: int) -> int:
    """To three digits, upwards: what fits the smaller size fits the rounded one."""
    digit = int(10 ** max(0, len(str(size)) - 3))
    return -(-size // digit) * digit
