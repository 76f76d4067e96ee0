"""Ranges and lists as a user types them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trady.planner.errors import StudyError, UnitError
from trady.planner.options import DType, OptimizerKind, Scope
from trady.planner.studies.grids import Axes, default_budgets, parse_batch_sizes, parse_budgets


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("256KB", (256_000,)),
        ("256KiB,64KB", (64_000, 262_144)),
        ("1KB:4KB:3", (1000, 2000, 4000)),
        ("1KB:4KB:3,3KB,2KB", (1000, 2000, 3000, 4000)),
        ("5KB:5KB:1", (5000,)),
        (["64KB", 1000], (1000, 64_000)),
    ],
)
def test_budgets(text: str, budgets: tuple[int, ...]) -> None:
    assert parse_budgets(text) == budgets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4MB:32KB:24", "reversed"),
        ("32KB:4MB", "are no range"),
        ("32KB:4MB:0", "above 0"),
        ("32KB:4MB:few", "above 0, got 'few'"),
    ],
)
def test_ranges_that_are_none(text: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_budgets(text)


def test_a_size_that_is_none() -> None:
    with pytest.raises(UnitError, match="'32Q' is not a size"):
        parse_budgets("32Q")


@pytest.mark.parametrize(
    ("text", "sizes"), [("1,8,32", (1, 8, 32)), ("1:64:7", (1, 2, 4, 8, 16, 32, 64)), ([4, 2, 4], (2, 4))]
)
def test_batch_sizes(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_batch_sizes(text) == sizes


@pytest.mark.parametrize("text", ["0", "1.5", "", "8:1:3", "-1"])
def test_batch_sizes_that_are_none(text: str) -> None:
    with pytest.raises(StudyError, match=r"above 0|reversed"):
        parse_batch_sizes(text)


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_default_budgets_hold_both_ends(least: int, most: int) -> None:
    budgets = default_budgets(least, most)
    assert least <= budgets[0] <= least * 1.01 + 1
    assert budgets[-1] >= max(least, most)
    assert list(budgets) == sorted(set(budgets))


def test_settings_are_every_combination_once() -> None:
    axes = Axes(
        inputs=("", "3x8x8"),
        dtypes=(None, DType.INT8),
        batch_sizes=(1, 8),
        optimizers=(OptimizerKind.SGD, OptimizerKind.ADAM),
        budgets=(1, 2, 3),
    )
    settings = list(axes.settings("net", scope=Scope.UPDATE, epochs=5))
    assert len(settings) == len(set(settings)) == axes.num_rows(1) == 48


def test_a_huge_grid_has_to_be_confirmed() -> None:
    axes = Axes(budgets=tuple(range(1, 1001)), batch_sizes=tuple(range(1, 102)))
    with pytest.raises(StudyError, match=r"101,000 rows.*--yes"):
        axes.check_size(1, confirmed=False)
    axes.check_size(1, confirmed=True)
