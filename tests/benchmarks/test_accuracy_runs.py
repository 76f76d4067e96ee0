"""Runs of the accuracy benchmark hold the bytes they claim."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from inverted_residuals import BlockShape, InvertedResidualNetwork

from benchmarks.accuracy.__main__ import RESULTS, TIMES
from benchmarks.accuracy.grid import POLICIES
from benchmarks.accuracy.report import PAGE, compare, page
from benchmarks.accuracy.rows import latest, read_rows
from benchmarks.accuracy.runs import Cell, Recipe, run
from benchmarks.accuracy.tasks import ASSETS, NETWORKS
from trady.engine import Engine
from trady.planner import make_plan

BLOCKS = (BlockShape(8, 16, 8, 3, 1, True, True), BlockShape(8, 24, 12, 3, 2, False, True))


@pytest.mark.parametrize("strategy", ["solver", "trady"])
def test_a_batch_at_once_has_the_gradients_of_its_samples_accumulated(strategy: str) -> None:
    """What the benchmark does for speed: norms are frozen, so the bytes of one sample buy the step of many."""
    torch.manual_seed(0)
    model = InvertedResidualNetwork(8, BLOCKS, num_classes=5)
    inputs, targets = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    plan = make_plan(model, inputs[:1], budget="8KB", strategy=strategy)
    gradients = []
    for size in (6, 1):
        engine = Engine(model, plan, seed=1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="A batch of")
            for x, y in zip(inputs.split(size), targets.split(size), strict=True):
                (F.cross_entropy(engine(x), y) * size / 6).backward()
        gradients.append({name: parameter.grad for name, parameter in engine.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, found in gradients[0].items():
        torch.testing.assert_close(found, gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["solver", "trady", "d-det-rgn", "medyate", "solver AdamW", "head", "bias", "su", "full"]
)
def test_a_run_measures_what_it_planned(name: str) -> None:
    if not ASSETS.exists():
        pytest.skip("no asset folder")
    network = NETWORKS["mcunet-5fps"]
    cell = Cell(network.name, "catdog", network.budgets[0], POLICIES[name], Recipe(64, 2, 64), 0.0001)
    row = run(cell)
    assert row["measured_update_bytes"] == row["planned_update_bytes"] and not row["exceeded"]
    if name not in ("full", "su"):
        assert row["measured_update_bytes"] <= 4 * cell.budget
    assert row["accuracy"] > 0.6, "the fitted head alone knows cats from dogs better than that"
    assert row["key"] == cell.key


def test_the_page_is_what_the_committed_runs_say() -> None:
    written = PAGE.read_text()
    assert written == page(read_rows(RESULTS), json.loads(TIMES.read_text()))


def test_where_a_cell_ran_at_two_rates_the_later_counts() -> None:
    where = {"network": "n", "data": "x", "budget_elements": 1, "seed": 0, "recipe": {"epochs": 6}}
    cell = where | {"policy": {"name": "a"}, "choosing": False}
    rows = [cell | {"rate": 0.1}, cell | {"rate": 0.2}, cell | {"rate": 0.3, "choosing": True}]
    assert [row["rate"] for row in latest(rows)] == [0.2]


def test_policies_are_compared_on_what_both_ran_on() -> None:
    def row(policy: str, data: str, seed: int, accuracy: float, epochs: int = 6) -> dict[str, object]:
        where = {"network": "n", "data": data, "budget_elements": 1, "seed": seed, "recipe": {"epochs": epochs}}
        return where | {"policy": {"name": policy}, "accuracy": accuracy}

    rows = [row("a", "x", 0, 0.7), row("b", "x", 0, 0.6), row("a", "x", 1, 0.8), row("b", "x", 1, 0.6)]
    rows += [row("a", "y", 0, 0.1), row("b", "z", 0, 0.9), row("a", "v", 0, 0.9), row("b", "v", 0, 0.1, epochs=50)]
    found = compare(rows, "a", "b")
    assert found is not None and found.pairs == 2
    assert found.difference == pytest.approx(15)
    assert compare(rows, "a", "c") is None
