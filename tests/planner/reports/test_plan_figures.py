"""Figures are valid files that show what they must; graphs are read back equal."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
import torch
from PIL import Image
from torch import nn

from trady.planner.errors import TradyError
from trady.planner.plan.plan import Plan
from trady.planner.planning.planning import make_plan
from trady.planner.reports.module_graphs import MODEL, Place, layered_places, module_graph
from trady.planner.reports.plan_figures import check_graph_path, draw_graph, plot_plan, save_graph
from trady.planner.reports.plotting import check_figure_path
from trady.planner.tracing.tracing import Trace, trace


class Residual(nn.Module):
    """A block that uses its ReLU twice, in place, around an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.relu(self.conv2(self.relu(self.conv1(x))) + x)
        return outputs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = Residual()
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.block(self.stem(x)).mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module")
def traced() -> Trace:
    return trace(Net(), torch.randn(2, 3, 10, 10))


@pytest.fixture(scope="module")
def plan(traced: Trace) -> Plan:
    torch.manual_seed(0)
    return make_plan(Net(), torch.randn(2, 3, 10, 10), budget="4KB", optimizer="momentum", traced=traced)


def svg_text(path: Path) -> str:
    return " ".join(element.text or "" for element in ElementTree.parse(path).iter() if element.tag.endswith("text"))


def test_plan_is_plotted_as_png(plan: Plan, tmp_path: Path) -> None:
    plot_plan(plan, tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as image:
        image.load()
        assert image.format == "PNG" and image.width > 600
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)} <= colours


def test_plan_is_plotted_as_svg_with_its_layers_named(plan: Plan, tmp_path: Path) -> None:
    plot_plan(plan, str(tmp_path / "plan.svg"))
    text = svg_text(tmp_path / "plan.svg")
    for layer in plan.table.layers:
        assert layer.name in text
    assert "4.0 kB" in text and "scope update" in text and "RGN" in text


def test_same_plan_gives_the_same_svg(plan: Plan, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot_plan(plan, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_plotting_leaves_matplotlib_as_it_was(plan: Plan, tmp_path: Path) -> None:
    import matplotlib

    before = (dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules)
    plot_plan(plan, tmp_path / "plan.svg")
    assert (dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules) == before


def test_model_is_drawn_with_a_box_for_each_module(traced: Trace, tmp_path: Path) -> None:
    draw_graph(traced, tmp_path / "graph.svg")
    text = svg_text(tmp_path / "graph.svg")
    for name in ("stem", "block.conv1", "block.relu", "block.relu (2)", "head"):
        assert f"{name}  " in text
    assert "batch 2" in text
    draw_graph(traced, tmp_path / "graph.png")
    with Image.open(tmp_path / "graph.png") as image:
        image.load()
        assert image.height > image.width / 2


def test_module_graph_follows_the_data_without_cycles(traced: Trace) -> None:
    graph = module_graph(traced)
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph.edges) == {
        ("stem", "block.conv1"),
        ("stem", "block"),
        ("block.conv1", "block.relu"),
        ("block.relu", "block.conv2"),
        ("block.conv2", "block"),
        ("block", "block.relu (2)"),
        ("block.relu (2)", MODEL),
        (MODEL, "head"),
        ("head", f"{MODEL} (2)"),
    }
    assert graph.nodes["block.relu (2)"]["module"] == "block.relu"


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_nodes_keep_what_dense_training_keeps(norm: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(256, 3))
    traced = trace(net, torch.randn(2, 3, 10, 10), norm=norm)
    assert sum(kept for _, kept in module_graph(traced).nodes(data="kept_bytes")) == traced.saved_bytes


def test_chains_stay_straight_and_branches_meet_where_they_parted() -> None:
    graph = nx.DiGraph([("a", "b"), ("b", "left"), ("b", "right"), ("right", "right2"), ("left", "c"), ("right2", "c")])
    places = layered_places(graph)
    assert places["left"] == Place(2, 0) and places["right"] == Place(2, 1) and places["right2"] == Place(3, 1)
    assert places["c"] == Place(4, 0)
    assert len(set(places.values())) == len(graph)


def test_graph_is_read_back_equal(traced: Trace, tmp_path: Path) -> None:
    save_graph(traced, tmp_path / "graph.json")
    save_graph(traced, str(tmp_path / "graph.graphml"))
    from_json = nx.node_link_graph(json.loads((tmp_path / "graph.json").read_text()), edges="edges")
    from_graphml = nx.read_graphml(tmp_path / "graph.graphml")
    for found in (from_json, from_graphml):
        assert found.is_directed()
        assert dict(found.nodes(data=True)) == dict(traced.graph.nodes(data=True))
        assert set(found.edges) == set(traced.graph.edges)


def test_unknown_suffixes_are_refused(traced: Trace, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(TradyError, match=r"Figure .*plan\.jpg: suffix '\.jpg' is not known\. Use \.png or \.svg\."):
        plot_plan(plan, tmp_path / "plan.jpg")
    with pytest.raises(TradyError, match="the name has no suffix"):
        draw_graph(traced, tmp_path / "graph")
    with pytest.raises(TradyError, match=r"Use \.json or \.graphml\."):
        save_graph(traced, tmp_path / "graph.dot")
    with pytest.raises(TradyError, match=r"suffix '\.txt'"):
        check_graph_path(tmp_path / "graph.txt")
    assert list(tmp_path.iterdir()) == []


def test_missing_matplotlib_says_how_to_get_it(
    plan: Plan, traced: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draws: tuple[Callable[[], object], ...] = (
        lambda: plot_plan(plan, tmp_path / "a.png"),
        lambda: draw_graph(traced, tmp_path / "a.png"),
        lambda: check_figure_path(tmp_path / "a.png"),
    )
    for draw in draws:
        with pytest.raises(TradyError, match=r'pip install "trady\[plot\]"'):
            draw()
    assert list(tmp_path.iterdir()) == []


def test_paths_are_checked_before_the_work(tmp_path: Path) -> None:
    check_figure_path(tmp_path / "a.svg")
    with pytest.raises(TradyError, match="does not exist"):
        check_figure_path(tmp_path / "missing" / "a.svg")
    with pytest.raises(TradyError, match="does not exist"):
        check_graph_path(tmp_path / "missing" / "a.json")
