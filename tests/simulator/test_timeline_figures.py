"""Pictures of timelines are valid files that say what they must, whatever the weights weigh."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import nn

from trady.planner.errors import TradyError
from trady.planner.planning.planning import make_plan
from trady.planner.units import format_bytes
from trady.simulator import Timeline, plot_timeline, timeline

COLOURS = {"saved activations": (0xE6, 0x9F, 0x00), "workspace": (0x56, 0xB4, 0xE9), "weights": (0x9E, 0x9E, 0x9E)}


def planned(budget: str = "8KB", scope: str = "update", depth: int = 0) -> Timeline:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),
        *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth)), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    return timeline(make_plan(net, torch.zeros(2, 3, 12, 12), budget=budget, scope=scope))


def svg_text(path: Path) -> str:
    return " ".join(element.text or "" for element in ElementTree.parse(path).iter() if element.tag.endswith("text"))


@pytest.fixture(scope="module")
def found() -> Timeline:
    return planned()


def test_a_timeline_is_plotted_as_png(found: Timeline, tmp_path: Path) -> None:
    plot_timeline(found, tmp_path / "timeline.png")
    with Image.open(tmp_path / "timeline.png") as image:
        image.load()
        assert image.format == "PNG" and image.width > 1000
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert set(COLOURS.values()) <= colours


def test_a_picture_names_the_peak_the_phases_and_every_part(found: Timeline, tmp_path: Path) -> None:
    plot_timeline(found, str(tmp_path / "timeline.svg"))
    text = svg_text(tmp_path / "timeline.svg")
    peak = found.peak_moment
    assert f"peak {format_bytes(found.peak_bytes)} at {peak.module} ({peak.kind.value})" in text
    for phase in ("forward", "backward", "optimizer", "epoch 0, seed 0", "budget 8.0 kB in scope update"):
        assert phase in text
    for name in found.moments[0].num_bytes:
        is_there = any(moment.num_bytes[name] for moment in found.moments)
        assert (f"{name.replace('_', ' ')}  " in text) is is_there
    for layer in found.plan.table.layers:
        assert layer.name in text


def test_same_timeline_gives_the_same_files(found: Timeline, tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        plot_timeline(found, tmp_path / f"a.{suffix}")
        plot_timeline(found, tmp_path / f"b.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_heavy_weights_are_cut_off_and_the_axis_says_so(found: Timeline, tmp_path: Path) -> None:
    plot_timeline(found, tmp_path / "light.svg")
    plot_timeline(planned(depth=30), tmp_path / "heavy.svg")
    said = "up: below lie weights and batch"
    assert said not in svg_text(tmp_path / "light.svg") and said in svg_text(tmp_path / "heavy.svg")


def test_the_budget_is_a_line_where_it_holds_the_peak(found: Timeline, tmp_path: Path) -> None:
    plot_timeline(found, tmp_path / "update.svg")
    held = planned(budget="44KB", scope="peak")
    plot_timeline(held, tmp_path / "peak.svg")
    assert svg_text(tmp_path / "peak.svg").count("budget 44.0 kB") == 2
    assert svg_text(tmp_path / "update.svg").count("budget 8.0 kB") == 1


def test_other_suffixes_are_refused(found: Timeline, tmp_path: Path) -> None:
    with pytest.raises(TradyError, match=r"Figure .*step\.jpg: suffix '\.jpg' is not known\. Use \.png or \.svg\."):
        plot_timeline(found, tmp_path / "step.jpg")
    with pytest.raises(TradyError, match="the name has no suffix"):
        plot_timeline(found, tmp_path / "step")
    assert list(tmp_path.iterdir()) == []


def test_missing_matplotlib_says_how_to_get_it(
    found: Timeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(TradyError, match=r'pip install "trady\[plot\]"'):
        plot_timeline(found, tmp_path / "step.png")
