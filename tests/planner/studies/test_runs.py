"""A study's rows are the plans that ``make_plan`` makes, however they are shared out or interrupted."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cases import Residual
from tables import backward_macs
from trady.planner import Priorities, Study, calibrate, make_plan, study
from trady.planner.errors import BudgetError, StudyError, TradyError
from trady.planner.ledger import BatchedLedger
from trady.planner.options import DType, OptimizerKind, Scope
from trady.planner.planning import ChoiceOptions
from trady.planner.planning.requests import cheapest_layer
from trady.planner.priorities.calibration import synthetic_batches
from trady.planner.studies.folders import DEFINITION, ROWS, TABLE

BUDGETS = (2_000, 5_000, 12_000, 30_000, 200_000)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Residual(in_place=False)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.zeros(2, 3, 12, 12)


@pytest.fixture(scope="module")
def priorities(net: nn.Module, pictures: torch.Tensor) -> Priorities:
    return calibrate(net, synthetic_batches(net, pictures, 3), source="synthetic", origin="noise")


def studied(net: nn.Module, pictures: torch.Tensor, priorities: Priorities, **options: Any) -> Study:
    settings: dict[str, Any] = {
        "budgets": BUDGETS,
        "batch_sizes": (1, 4),
        "optimizers": ("sgd", "adamw"),
        "workers": 1,
        "epochs": 6,
    }
    return study((net, pictures), priorities=priorities, **(settings | options))


@pytest.mark.parametrize("scope", [Scope.UPDATE, Scope.TRAINING, Scope.PEAK])
def test_every_row_is_the_plan_of_its_setting(
    net: nn.Module, pictures: torch.Tensor, priorities: Priorities, scope: Scope
) -> None:
    dtypes = (None, "bfloat16", "int8") if scope is Scope.UPDATE else (None, "bfloat16")
    found = studied(net, pictures, priorities, scope=scope, dtypes=dtypes, optimizers=("momentum", "adamw"))
    assert len(found.rows) == len(BUDGETS) * 2 * 2 * len(dtypes)
    assert {row.status for row in found.rows} <= {"optimal", "infeasible"}
    assert sum(row.status == "optimal" for row in found.rows) >= 2 * len(dtypes)
    for row in found.rows:
        setting = row.setting
        options: dict[str, Any] = {
            "budget": setting.budget_bytes,
            "scope": scope,
            "batch_size": setting.batch_size,
            "optimizer": setting.optimizer,
            "dtype": setting.dtype,
            "epochs": 6,
        }
        if row.bought is None:
            with pytest.raises(BudgetError) as told:
                make_plan(net, pictures, priorities=priorities, **options)
            # For a peak the study has measured every kernel, and so knows the smallest budget better.
            assert scope is Scope.PEAK or row.why == str(told.value)
            continue
        plan = make_plan(net, pictures, priorities=priorities, **options)
        assert {layer.name: layer.channels for layer in row.bought.layers} == plan.chosen
        assert row.bought.lines == plan.ledger.lines.model_dump()
        assert row.bought.scopes == plan.ledger.scopes.model_dump()
        assert row.bought.used_bytes == plan.ledger.scopes.of(scope) <= setting.budget_bytes
        assert row.bought.value == pytest.approx(plan.solver.value)
        assert row.bought.backward_macs == backward_macs(plan.table, plan.counts)
        parts = ("gradient_bytes", "stored_bytes", "optimizer_bytes", "index_bytes")
        by_layer = sum(getattr(layer, part) for layer in row.bought.layers for part in parts)
        assert by_layer == plan.ledger.scopes.update


def test_an_infeasible_row_says_the_smallest_budget_and_what_helps(net: nn.Module, pictures: torch.Tensor) -> None:
    found = study((net, pictures), budgets="800B", scope="training", batch_sizes=(8,), optimizers=("adamw",), workers=1)
    (row,) = found.rows
    assert row.status == "infeasible"
    assert row.needed_bytes is not None
    options: dict[str, Any] = {"scope": "training", "optimizer": "adamw", "batch_size": 8}
    plan = make_plan(net, pictures, budget=row.needed_bytes, **options)
    assert plan.chosen
    with pytest.raises(BudgetError):
        make_plan(net, pictures, budget=row.needed_bytes - 1, **options)


def test_every_remedy_helps_and_needs_what_it_says(net: nn.Module, pictures: torch.Tensor) -> None:
    changes: dict[str, dict[str, Any]] = {
        "batch size 1": {"batch_size": 1},
        "batch size 2": {"batch_size": 2},
        "batch size 4": {"batch_size": 4},
        "frozen norms": {"norm": "frozen"},
        "bfloat16": {"dtype": "bfloat16"},
        "SinkGD": {"optimizer": "sinkgd"},
    }
    dear: dict[str, Any] = {"scope": "training", "optimizer": "adamw", "batch_size": 8, "norm": "train"}
    least = study((net, pictures), budgets="1B", workers=1, scope="training", norms=("train",), batch_sizes=(8,),
                  optimizers=("adamw",)).rows[0].needed_bytes  # fmt: skip
    assert least is not None
    found = study((net, pictures), budgets=[least - 1], workers=1, scope="training", norms=("train",),
                  batch_sizes=(8,), optimizers=("adamw",))  # fmt: skip
    remedies = {remedy.change: remedy for remedy in found.rows[0].remedies}
    assert remedies.keys() == {"batch size 1", "batch size 2", "batch size 4", "frozen norms", "bfloat16", "SinkGD"}
    assert found.rows[0].remedies[0].change == "batch size 4"
    for change, remedy in remedies.items():
        options = dear | changes[change]
        assert make_plan(net, pictures, budget=remedy.needed_bytes, **options).chosen
        with pytest.raises(BudgetError):
            make_plan(net, pictures, budget=remedy.needed_bytes - 1, **options)


def test_processes_change_nothing(net: nn.Module, pictures: torch.Tensor, priorities: Priorities) -> None:
    alone, shared = (studied(net, pictures, priorities, workers=workers) for workers in (1, 2))
    assert alone.rows == shared.rows


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("cut", [0, 7])
def test_an_interrupted_study_goes_on(
    net: nn.Module, pictures: torch.Tensor, priorities: Priorities, tmp_path: Path, cut: int
) -> None:
    whole = studied(net, pictures, priorities, output=tmp_path / "whole")
    seen: list[int] = []

    def stop_after_two_columns(number: int) -> None:
        seen.append(number)
        if sum(seen) >= 2 * len(BUDGETS):
            raise StoppedError

    broken = tmp_path / "broken"
    with pytest.raises(StoppedError):
        studied(net, pictures, priorities, output=broken, progress=stop_after_two_columns)
    rows = (broken / ROWS).read_bytes()
    assert rows.count(b"\n") == 2 * len(BUDGETS)
    (broken / ROWS).write_bytes(rows[: len(rows) - cut])  # a kill in the middle of a line
    counted: list[int] = []
    resumed = studied(net, pictures, priorities, output=broken, progress=counted.append)
    assert counted[0] == 2 * len(BUDGETS) - (cut > 0)
    assert sum(counted) == len(whole.rows)
    assert resumed.rows == whole.rows
    for name in (ROWS, TABLE, DEFINITION):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_study_plans_nothing_again(
    net: nn.Module, pictures: torch.Tensor, priorities: Priorities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = studied(net, pictures, priorities, output=tmp_path)
    monkeypatch.setattr("trady.planner.studies.models.trace", None)  # would fail if it were called
    assert studied(net, pictures, priorities, output=tmp_path).rows == first.rows


def test_a_folder_with_another_study_is_left_alone(
    net: nn.Module, pictures: torch.Tensor, priorities: Priorities, tmp_path: Path
) -> None:
    studied(net, pictures, priorities, output=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StudyError, match=r"holds another study: axes .*Give another folder with -o"):
        studied(net, pictures, priorities, output=tmp_path, batch_sizes=(1, 2))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_row_is_named(net: nn.Module, pictures: torch.Tensor, priorities: Priorities, tmp_path: Path) -> None:
    studied(net, pictures, priorities, output=tmp_path)
    lines = (tmp_path / ROWS).read_text().splitlines(keepends=True)
    (tmp_path / ROWS).write_text("".join([lines[0], '{"setting": 3}\n', *lines[1:]]))
    with pytest.raises(StudyError, match=r"rows.jsonl, line 2 is no row of a study: setting"):
        Study.load(tmp_path)
    with pytest.raises(StudyError, match="line 2"):
        studied(net, pictures, priorities, output=tmp_path)


def test_a_model_that_fails_is_told_and_the_rest_goes_on(net: nn.Module, pictures: torch.Tensor) -> None:
    class Broken(nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures.view(7)

    found = study({"good": (net, pictures), "bad": (Broken(), pictures)}, budgets=["5KB", "30KB"], workers=1)
    assert [row.status for row in found.rows] == ["optimal", "optimal", "failed", "failed"]
    assert len(found.failures) == 1
    assert found.failures[0].startswith("bad, 3x12x12")
    assert all(row.why for row in found.rows[2:])


def test_without_budgets_each_column_finds_its_own(net: nn.Module, pictures: torch.Tensor) -> None:
    found = study((net, pictures), batch_sizes=(1, 8), workers=1)
    for rows in found.answers.curves.values():
        first, last = rows[0], rows[-1]
        assert first.bought is not None
        assert len(first.bought.layers) >= 1
        assert last.bought is not None
        assert last.bought.value > 1 - 1e-3
        assert first.setting.budget_bytes < last.setting.budget_bytes


@pytest.mark.parametrize("target", [0.2, 0.6, 0.95])
def test_the_smallest_budget_for_a_target(net: nn.Module, pictures: torch.Tensor, target: float) -> None:
    options: dict[str, Any] = {"batch_sizes": (4,), "workers": 1, "epochs": 5}
    (row,) = study((net, pictures), target_coverage=target, **options).rows
    assert row.bought is not None
    assert row.bought.rgn_reached >= target
    budget = row.setting.budget_bytes
    grid = [found.setting.budget_bytes for found in study((net, pictures), **options).rows]
    smaller = [*(size for size in grid if size < budget), int(budget / 1.02)]
    for found in study((net, pictures), budgets=smaller, **options).rows:
        assert found.bought is None or found.bought.rgn_reached < target


def test_a_target_out_of_reach_gives_everything(net: nn.Module, pictures: torch.Tensor) -> None:
    (row,) = study((net, pictures), target_coverage=1.0, epochs=1, workers=1).rows
    assert row.bought is not None
    assert row.bought.value > 1 - 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizers": ()}, "no optimizers"),
        ({"target_coverage": 1.5}, "at most 1, got 1.5"),
        ({"target_coverage": 0.5, "budgets": "1KB"}, "finds its own budgets"),
        ({"inputs": ("3x8x8",)}, "came with example inputs"),
    ],
)
def test_wrong_options(net: nn.Module, pictures: torch.Tensor, options: dict[str, Any], message: str) -> None:
    if "inputs" in options:
        assert message in study((net, pictures), workers=1, **options).failures[0]
        return
    with pytest.raises(StudyError, match=message):
        study((net, pictures), workers=1, **options)


def test_what_all_rows_share(net: nn.Module, pictures: torch.Tensor, priorities: Priorities) -> None:
    options: dict[str, Any] = {"scope": "training", "only": "conv", "train": "norm.*", "memory_format": "channels_last"}
    (row,) = studied(net, pictures, priorities, budgets="60KB", batch_sizes=(2,), optimizers=("sgd",), **options).rows
    plan = make_plan(net, pictures, budget="60KB", epochs=6, priorities=priorities, **options)
    assert row.bought is not None
    assert [layer.name for layer in row.bought.layers] == ["conv"] == list(plan.chosen)
    assert row.bought.lines == plan.ledger.lines.model_dump()
    with pytest.raises(TradyError, match="Layout 'diagonal' is unknown"):
        studied(net, pictures, priorities, memory_format="diagonal")


def test_a_bounded_backward_pass_is_told_as_it_is(
    net: nn.Module, pictures: torch.Tensor, priorities: Priorities
) -> None:
    options: dict[str, Any] = {"budgets": "60KB", "batch_sizes": (2,), "optimizers": ("sgd",), "max_backward_macs": 1}
    (row,) = studied(net, pictures, priorities, **options).rows
    assert "--max-backward-macs 1" in row.why
    assert row.status == "failed"
    assert row.needed_bytes is None


def test_priorities_are_of_one_model(net: nn.Module, pictures: torch.Tensor, priorities: Priorities) -> None:
    with pytest.raises(StudyError, match="Priorities are of one model"):
        study({"a": (net, pictures), "b": (net, pictures)}, priorities=priorities)


def test_the_price_of_the_next_kilobyte_is_that_of_the_best_next_channel(
    net: nn.Module, pictures: torch.Tensor, priorities: Priorities
) -> None:
    budget = 9_000
    plan = make_plan(net, pictures, budget=budget, priorities=priorities, batch_size=4, epochs=6)
    found = studied(net, pictures, priorities, budgets=[budget], batch_sizes=(4,), optimizers=("sgd",)).rows[0]
    assert found.bought is not None
    best = 0.0
    spent = plan.ledger.scopes.update
    for index, (layer, count) in enumerate(zip(plan.table.layers, plan.counts, strict=True)):
        if count < layer.in_channels:
            more = [*plan.counts]
            more[index] += 1
            cost = BatchedLedger(plan.table).of(more).scopes.update - spent
            covered = [1 - (1 - channels / layer.in_channels) ** plan.solver.horizon for channels in (count, count + 1)]
            gained = plan.layer_values[index] * (covered[1] - covered[0]) / sum(plan.layer_values)
            best = max(best, gained / cost * 1000 if cost else 0.0)
    assert found.bought.next_kilobyte == pytest.approx(best)


def test_tables_hold_every_row(net: nn.Module, pictures: torch.Tensor, priorities: Priorities, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    found = studied(net, pictures, priorities, output=tmp_path)
    frame = found.to_dataframe()
    assert len(frame) == len(found.rows)
    from_csv = pandas.read_csv(tmp_path / TABLE)
    assert list(from_csv.columns) == list(frame.columns)
    trained = [row for row in found.rows if row.bought is not None]
    assert from_csv["used_bytes"].dropna().astype(int).tolist() == [
        row.bought.used_bytes for row in trained if row.bought
    ]
    layers = [json.loads(text) for text in from_csv["layers"].dropna()]
    assert layers == [{layer.name: layer.channels for layer in row.bought.layers} for row in trained if row.bought]
    assert Study.load(tmp_path).rows == found.rows


def test_parquet_reads_back(net: nn.Module, pictures: torch.Tensor, priorities: Priorities, tmp_path: Path) -> None:
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    from trady.planner.studies.exports import write_parquet

    found = studied(net, pictures, priorities)
    write_parquet(found, tmp_path / "rows.parquet")
    frame = pandas.read_parquet(tmp_path / "rows.parquet")
    assert frame["budget_bytes"].tolist() == [row.setting.budget_bytes for row in found.rows]
    assert json.loads(frame["layers"].dropna().iloc[-1])


@pytest.mark.slow
def test_ray_plans_the_same_rows(net: nn.Module, pictures: torch.Tensor, priorities: Priorities) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from trady.planner.studies.grids import Axes
    from trady.planner.studies.runs import run_study
    from trady.planner.studies.specs import Common, ModuleSpec

    axes = Axes(batch_sizes=(1, 4), optimizers=(OptimizerKind.SGD, OptimizerKind.ADAM), budgets=BUDGETS,
                dtypes=(None, DType.INT8))  # fmt: skip
    specs = [ModuleSpec("net", net, pictures, priorities=priorities)]
    here = run_study(specs, axes, Common(epochs=6), workers=1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        there = run_study(specs, axes, Common(epochs=6), ray=cluster.address)
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
    assert there.rows == here.rows


def test_least_budget_is_brute_force(net: nn.Module, pictures: torch.Tensor) -> None:
    for scope, optimizer in itertools.product((Scope.UPDATE, Scope.TRAINING), OptimizerKind):
        plan = make_plan(net, pictures, budget="1MB", scope=scope, optimizer=optimizer)
        request = ChoiceOptions(budget_bytes=1, scope=scope, optimizer=optimizer, epochs=5)
        index, least = cheapest_layer(BatchedLedger(plan.table), request)
        sizes = []
        for place in range(len(plan.table.layers)):
            counts = [0] * len(plan.table.layers)
            counts[place] = 1
            sizes.append(BatchedLedger(plan.table).of(counts).scopes.of(scope))
        assert (sizes.index(min(sizes)), min(sizes)) == (index, least)
