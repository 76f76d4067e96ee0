"""Presets name what exists, and learning rates are looked for where the best one lies."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.accuracy import tasks as accuracy_tasks
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.grid import POLICIES, PRESETS, best_rate, rates_to_try
from benchmarks.accuracy.rows import RowsError, append_row, read_rows
from benchmarks.accuracy.runs import Cell, Recipe
from benchmarks.accuracy.tasks import NETWORKS, SOURCES

FIRST = (0.01, 0.02, 0.04)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_what_exists(preset: str) -> None:
    for block in PRESETS[preset]:
        assert set(block.networks) <= NETWORKS.keys() and set(block.data) <= SOURCES.keys()
        assert set(block.policies) <= POLICIES.keys()
        assert all(budget < len(NETWORKS[network].budgets) for network in block.networks for budget in block.budgets)
        assert all(len(block.first_rates(POLICIES[name])) > 1 for name in block.policies)


def test_every_policy_is_run_by_a_preset() -> None:
    run = {name for preset in PRESETS.values() for block in preset for name in block.policies}
    assert run == POLICIES.keys()


@pytest.mark.parametrize(
    "change",
    [
        {"network": "minilm-l6"},
        {"data": "trec"},
        {"budget": 2},
        {"policy": POLICIES["solver"]},
        {"policy": replace(POLICIES["trady"], plan={"exclude": "stem"})},
        {"policy": replace(POLICIES["trady"], draws_per_epoch=2)},
        {"recipe": Recipe(64, 2, 65)},
        {"rate": 0.2},
        {"seed": 1},
        {"choosing": True},
    ],
)
def test_a_run_of_another_kind_has_another_key(change: dict[str, Any]) -> None:
    cell = Cell("mbv2-w0.35", "food10", 1, POLICIES["trady"], Recipe(64, 2, 64), 0.1)
    assert replace(cell).key == cell.key
    assert replace(cell, **change).key != cell.key


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


def test_a_line_cut_off_by_a_stop_is_left_out_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b"}\n{"key": "c", "acc')
    assert [row["key"] for row in read_rows(path)] == ["a", "b"]
    append_row(path, {"key": "d"})
    assert [row["key"] for row in read_rows(path)] == ["a", "b", "d"]
    assert read_rows(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("broken", ['{"key": "b", "acc', "[1]", '{"accuracy": 1}'])
def test_a_broken_line_before_the_last_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"key": "a"}}\n{broken}\n{{"key": "c"}}\n')
    with pytest.raises(RowsError, match=r"rows\.jsonl, line 2 is no run"):
        read_rows(path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--results", "none.jsonl", "report"], "holds no judged run"),
        (["--workers", "0"], "not in the range x>=1"),
        (["--preset", "fast"], "is not one of"),
    ],
)
def test_wrong_calls_are_told(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code and told in result.output


def test_a_machine_without_data_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accuracy_tasks, "SOURCES", {name: str(tmp_path / name) for name in SOURCES})
    accuracy_tasks.is_here.cache_clear()
    try:
        result = CliRunner().invoke(main, ["--preset", "quick", "--results", str(tmp_path / "rows.jsonl")])
    finally:
        accuracy_tasks.is_here.cache_clear()
    assert result.exit_code and "TRADY_ASSETS" in result.output and not (tmp_path / "rows.jsonl").exists()
