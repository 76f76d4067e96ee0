"""Presets name what exists, and learning rates are looked for where the best one lies."""

import math

import pytest
from accuracy import read_rows
from accuracy_grid import POLICIES, PRESETS, best_rate, rates_to_try
from accuracy_tasks import NETWORKS, SOURCES

FIRST = (0.01, 0.02, 0.04)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_what_exists(preset: str) -> None:
    for block in PRESETS[preset]:
        assert set(block.networks) <= NETWORKS.keys() and set(block.data) <= SOURCES.keys()
        assert set(block.policies) <= POLICIES.keys()
        assert all(budget < len(NETWORKS[network].budgets) for network in block.networks for budget in block.budgets)
        assert all(len(block.first_rates(POLICIES[name])) > 1 for name in block.policies)


def test_no_two_runs_of_a_preset_share_a_key() -> None:
    cells = {cell for block in PRESETS["desk"] for cell in map(repr, block.judged())}
    keys = {cell.key for block in PRESETS["desk"] for cell in block.judged()}
    assert len(keys) == len(cells)


def test_a_best_rate_inside_ends_the_search() -> None:
    assert rates_to_try(FIRST, {0.01: 1.1, 0.02: 1.0, 0.04: 1.2}) == []


def test_missing_rates_come_first() -> None:
    assert rates_to_try(FIRST, {0.02: 1.0}) == [0.01, 0.04]


@pytest.mark.parametrize(
    ("losses", "next_rate"),
    [((1.0, 1.1, 1.2), 0.005), ((1.2, 1.1, 1.0), 0.08), ((1.0, math.nan, math.nan), 0.005)],
)
def test_the_search_goes_on_beyond_the_end_that_is_best(losses: tuple[float, ...], next_rate: float) -> None:
    assert rates_to_try(FIRST, dict(zip(FIRST, losses, strict=True))) == [next_rate]


def test_the_search_goes_beyond_twice_at_the_most() -> None:
    losses, tried = dict(zip(FIRST, (3.0, 4.0, 5.0), strict=True)), 0
    while rates := rates_to_try(FIRST, losses):
        losses[rates[0]] = min(losses.values()) - 1
        tried += 1
    assert tried == 2


def test_divergence_never_wins_and_ties_take_the_smaller_rate() -> None:
    assert best_rate({0.04: math.nan, 0.02: 1.5}) == 0.02
    assert best_rate({0.04: 1.5, 0.02: 1.5}) == 0.02


def test_a_line_cut_off_by_a_stop_is_left_out(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b"}\n{"key": "c", "acc')
    assert [row["key"] for row in read_rows(path)] == ["a", "b"]
    assert read_rows(tmp_path / "none.jsonl") == []
