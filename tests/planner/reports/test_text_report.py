"""The figures of a plan against hand-computed numbers, and what the reports must say."""

import io
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console, RenderableType
from torch import nn

from trady.planner.ledger import BatchedLedger
from trady.planner.plan.plan import Plan
from trady.planner.planning.planning import make_plan
from trady.planner.priorities.priorities import LayerPriority, Priorities, PrioritySource
from trady.planner.reports.summary import plan_figures, summary_json
from trady.planner.reports.text_parts import shorten
from trady.planner.reports.text_report import MOST_ROWS, plan_report, priorities_report
from trady.planner.units import format_count, format_share


class TinyNet(nn.Module):
    """Two convolutions on 8x8 pictures and a head: small enough to count by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean(dim=(2, 3)))
        return logits


class Pair(nn.Module):
    """Two linear layers that read one tensor: an input group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.stem(x))
        logits: torch.Tensor = self.head(self.left(hidden) * self.right(hidden))
        return logits


def plan_of(net: nn.Module, *shape: int, **options: Any) -> Plan:
    torch.manual_seed(0)
    return make_plan(net, torch.randn(*shape), **({"budget": "2KB"} | options))


def with_counts(plan: Plan, *counts: int) -> Plan:
    return plan.model_copy(update={"counts": counts, "ledger": BatchedLedger(plan.table).of(counts)})


@pytest.fixture(scope="module")
def tiny_plan() -> Plan:
    return plan_of(TinyNet(), 1, 2, 8, 8, optimizer="momentum")


def text_of(renderable: RenderableType, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


def test_sparsities_are_those_counted_by_hand(tiny_plan: Plan) -> None:
    plan = with_counts(tiny_plan, 0, 1)
    figures = plan_figures(plan)
    # inputs: 2 and 4 channels of 8x8; weight gradients: 4*9 and 6*9 elements a channel
    assert (figures.activation_elements.drawn, figures.activation_elements.full) == (64, 6 * 64)
    assert (figures.weight_grad_elements.drawn, figures.weight_grad_elements.full) == (54, 2 * 36 + 4 * 54)
    assert (figures.weight_grad_macs.drawn, figures.weight_grad_macs.full) == (54 * 64, (72 + 216) * 64)
    assert figures.activation_elements.saved_share == pytest.approx(1 - 1 / 6)
    assert (figures.channels.drawn, figures.channels.full) == (1, 6)


def test_backward_macs_count_gradients_towards_earlier_layers(tiny_plan: Plan) -> None:
    head = 6 * 5
    second = 4 * 6 * 9 * 64
    assert plan_figures(with_counts(tiny_plan, 0, 1)).backward_macs.drawn == head + second // 4
    everything = plan_figures(with_counts(tiny_plan, 2, 4)).backward_macs
    assert everything.drawn == everything.full == head + second + second + 2 * 4 * 9 * 64


def test_bytes_of_a_layer_are_those_counted_by_hand(tiny_plan: Plan) -> None:
    (layer,) = plan_figures(with_counts(tiny_plan, 0, 3)).layers
    assert (layer.name, layer.channels, layer.in_channels) == ("second", 3, 4)
    assert layer.gradient_bytes == layer.optimizer_bytes == 3 * 54 * 4
    assert (layer.stored_bytes, layer.index_bytes) == (3 * 64 * 4, 3 * 4)


@pytest.mark.parametrize("strategy", ["solver", "trady", "d-det-rgn", "s-full-random"])
def test_rows_add_up_to_the_ledger(strategy: str) -> None:
    plan = plan_of(Pair(), 4, 6, budget="400B", strategy=strategy)
    layers, lines = plan_figures(plan).layers, plan.ledger.lines
    assert sum(layer.gradient_bytes for layer in layers) == lines.gradients
    assert sum(layer.stored_bytes for layer in layers) == lines.saved_activations
    assert sum(layer.optimizer_bytes for layer in layers) == lines.optimizer_state
    assert sum(layer.index_bytes for layer in layers) == lines.draw_index


def test_shared_inputs_are_counted_once() -> None:
    plan = with_counts(plan_of(Pair(), 1, 6), 0, 2, 5)
    figures = plan_figures(plan)
    assert (figures.activation_elements.drawn, figures.activation_elements.full) == (5, 6 + 8)
    assert [layer.stored_bytes for layer in figures.layers] == [0, 5 * 4]


def test_value_shares_add_up_to_the_solvers_value() -> None:
    plan = plan_of(TinyNet(), 1, 2, 8, 8)
    assert sum(layer.value_share for layer in plan_figures(plan).layers) == pytest.approx(plan.solver.value, rel=1e-6)


def test_everything_drawn_is_the_whole_value(tiny_plan: Plan) -> None:
    layers = plan_figures(with_counts(tiny_plan, 2, 4)).layers
    assert sum(layer.value_share for layer in layers) == pytest.approx(1.0)


@pytest.mark.parametrize("width", [80, 120])
def test_report_says_what_it_must(tiny_plan: Plan, width: int) -> None:
    text = text_of(plan_report(tiny_plan), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "of 2.0 kB" in text and "scope update" in text and "strategy solver" in text
    assert "of 2 layers" in text and "of 6 input channels" in text and "momentum" in text
    assert "not predicted" not in text
    for line in type(tiny_plan.ledger.lines).model_fields:
        assert line.replace("_", " ") in text
    assert "activation sparsity" in text and "backward MACs saved" in text
    assert "measured on synthetic inputs" in text
    assert "Every operation of the step is in the ledger." in text


def test_report_of_a_drawn_strategy_says_it_is_one_epoch() -> None:
    text = " ".join(text_of(plan_report(plan_of(TinyNet(), 1, 2, 8, 8, strategy="trady"))).split())
    assert "strategy trady" in text and "first epoch" in text and "fills the budget anew" in text


def test_report_names_what_is_not_counted(tiny_plan: Plan) -> None:
    unaccounted = {f"rnn.{index}:aten::lstm": "its kernel keeps a workspace of its own" for index in range(6)}
    plan = tiny_plan.model_copy(
        update={
            "unaccounted": unaccounted,
            "not_drawn": dict.fromkeys("abcde", "is stacked [x]"),
            "notes": ("Mind [me].",),
        }
    )
    text = " ".join(text_of(plan_report(plan)).split())
    assert all(name in text for name in unaccounted)
    assert "5 parameters. a, b, c and 2 more: is stacked [x]." in text
    assert "Mind [me]." in text and "Every operation" not in text


def test_what_depth_costs_is_said_and_saved() -> None:
    """A stem drawn for a little value makes the backward pass go all the way through the network."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    best, lean = (plan_of(net, 2, 3, 16, 16, budget="48KB", tolerance=share) for share in (0.0, 0.2))
    macs = [int(BatchedLedger(plan.table).backward_macs(np.array([plan.counts]))[0]) for plan in (best, lean)]
    towards = [
        amount - int(BatchedLedger(plan.table).weight_grad_macs(np.array([plan.counts]))[0])
        for amount, plan in zip(macs, (best, lean), strict=True)
    ]
    assert (best.solver.given_up, best.solver.backward_saved) == (0, 0) and "Gave up" not in text_of(plan_report(best))
    assert towards[1] < towards[0] and min(lean.chosen) > min(best.chosen)
    assert 0 < lean.solver.given_up <= 0.2
    assert lean.solver.backward_saved == pytest.approx(1 - macs[1] / macs[0], abs=0.05)
    assert "less work in the backward pass (--tolerance 0 keeps it)" in " ".join(text_of(plan_report(lean)).split())


def test_long_lists_of_layers_are_cut_and_say_so() -> None:
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(MOST_ROWS + 6)), nn.Linear(8, 3))
    plan = with_counts(plan_of(net, 2, 8, budget="1MB"), *[8] * (MOST_ROWS + 6))
    text = text_of(plan_report(plan))
    assert f"the {MOST_ROWS} with the most bytes, of {MOST_ROWS + 6}" in text
    assert "and 6 more: 48 channels" in text
    assert sum(" linear " in line for line in text.splitlines()) == MOST_ROWS


def test_report_prints_in_a_pipe_that_knows_ascii_only(tiny_plan: Plan, tmp_path: Any) -> None:
    tiny_plan.save(tmp_path / "plan.json")
    script = (
        "import sys; from rich.console import Console; from trady.planner import Plan;"
        "from trady.planner.reports import plan_report; Console().print(plan_report(Plan.load(sys.argv[1])));"
        "assert 'torch' not in sys.modules and 'ortools' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "plan.json"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"activation sparsity" in done.stdout and b"\x1b" not in done.stdout


def test_summary_survives_json(tiny_plan: Plan) -> None:
    summary: dict[str, Any] = summary_json(tiny_plan)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["ledger"]["scopes"]["update"] == summary["used_bytes"] <= 2000
    assert summary["ledger"]["scopes"]["peak"] > summary["ledger"]["scopes"]["update"]
    assert sum(layer["update_bytes"] for layer in summary["layers"]) == summary["used_bytes"]
    assert summary["sparsity"]["activation"] == plan_figures(tiny_plan).activation_elements.saved_share
    assert summary["solver"]["status"] == "optimal" and summary["priorities"]["source"] == "synthetic"
    assert "table" not in summary


def priorities(rgn: list[float]) -> Priorities:
    layers = tuple(
        LayerPriority(
            name=f"block.{index}.conv",
            weight_name=f"block.{index}.conv.weight",
            channel_norms=(10 * value, 0.0),
            weight_elements=6,
            sample_elements=4,
        )
        for index, value in enumerate(rgn)
    )
    return Priorities(
        source=PrioritySource.DATA, origin="pets", num_batches=3, batch_size=8, tail_index=1.25, layers=layers
    )


def test_priorities_are_ranked_with_the_mark_of_the_top_layers() -> None:
    lines = text_of(priorities_report(priorities([1.0, 96.0, 2.0, 1.0]))).splitlines()
    text = "\n".join(lines)
    assert "2 hold 97 % of the RGN" in text
    assert "measured on your data (pets, 3 batches)" in text and "1.25" in text
    rows = [line.split() for line in lines if "block." in line]
    assert rows[0][:6] == ["1", "block.1.conv", "2", "960", "96", "48"]
    assert [row[6] for row in rows] == ["96.00", "98.00", "99.00", "100.00"]
    second = next(index for index, line in enumerate(lines) if "block.2" in line)
    assert set(lines[second + 1].strip()) == {"─"}


def test_long_rankings_are_cut_and_say_so() -> None:
    text = text_of(priorities_report(priorities([1.0] * 100)))
    assert f"and {100 - MOST_ROWS} more layers of smaller RGN" in text
    assert "97 hold 97 %" in text


def test_shares_never_round_to_nothing_or_all() -> None:
    shares = (0.0, 1e-6, 0.123456, 0.99996, 1.0)
    assert [format_share(share) for share in shares] == ["0.00 %", "< 0.01 %", "12.35 %", "> 99.99 %", "100.00 %"]
    assert format_share(0.33449, 1) == "33.4 %"


def test_counts_and_names_are_short() -> None:
    assert [format_count(count) for count in (0, 9_999, 10_000, 999_960, 1_234_567, 10**15)] == [
        "0",
        "9,999",
        "10.0 k",
        "1.0 M",
        "1.2 M",
        "1.0 P",
    ]
    assert shorten("layer4.1.conv2", 14) == "layer4.1.conv2"
    assert shorten("layer4.1.conv2", 10) == "...1.conv2"
