"""Figures of observations: valid files with what they must show; none where there is nothing to show."""

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trady.planner.errors import TradyError
from trady.planner.reports.plotting import spread
from trady.simulator.observation_figures import draw_observations
from trady.simulator.observations import ChannelRanks, Course, LayerRanks, Observations, RgnCurve


def observations(*, recorded: bool = True, labels: tuple[str, ...] = ("food", "cats")) -> Observations:
    number = len(labels)
    row = (1.0, *(0.9 - 0.1 * place for place in range(number)))
    return Observations(
        model="nets:small",
        priorities="data",
        rgn=RgnCurve(("c", "a", "b"), (6.0, 3.9, 0.1), (0.6, 0.99, 1.0), 0.97, 2),
        layer_ranks=LayerRanks(
            labels=("plan", *labels),
            across=(row,) * (number + 1),
            epochs=(((1.0, None), (None, 1.0)),) * number,
            with_plan=((0.9, None),) * number,
            with_first=((1.0, 0.8),) * number,
        )
        if recorded
        else None,
        channel_ranks=tuple(ChannelRanks(label, 4, (0.2, None), (-0.1, None), (0.5, None), (0.3, 0.2), 0.1)
                            for label in labels) if recorded else None,
        courses=tuple(Course(label, (1.4, None), (2.0, 1.5)) for label in labels) if recorded else None,
    )  # fmt: skip


def svg_text(path: Path) -> str:
    return " ".join(element.text or "" for element in ElementTree.parse(path).iter() if element.tag.endswith("text"))


def test_every_figure_is_a_png_and_an_svg(tmp_path: Path) -> None:
    written = draw_observations(observations(), tmp_path / "new" / "folder")
    names = ("rgn-cumulative", "layer-ranks", "channel-ranks", "tail-index")
    assert written == [tmp_path / "new" / "folder" / f"{name}{suffix}" for name in names for suffix in (".png", ".svg")]
    for path in written[::2]:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG" and image.width > 600


def test_figures_say_what_they_show(tmp_path: Path) -> None:
    draw_observations(observations(), tmp_path)
    for name, texts in {
        "rgn-cumulative": ("2 of 3 layers", "97 %", "nets:small"),
        "layer-ranks": ("plan", "food", "cats", "0.900", "the paper: 0.8 or more"),
        "channel-ranks": ("food", "cats", "by chance 10 %"),
        "tail-index": ("food", "Gaussian noise", "mean loss"),
    }.items():
        shown = svg_text(tmp_path / f"{name}.svg")
        for text in texts:
            assert text in shown, (name, text)


def test_without_recordings_only_the_plan_is_drawn(tmp_path: Path) -> None:
    written = draw_observations(observations(recorded=False), tmp_path)
    assert [path.name for path in written] == ["rgn-cumulative.png", "rgn-cumulative.svg"]
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_the_same_observations_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        draw_observations(observations(), tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_many_recordings_have_a_colour_bar_instead_of_numbers(tmp_path: Path) -> None:
    draw_observations(observations(labels=tuple(f"data{place}" for place in range(15))), tmp_path)
    shown = svg_text(tmp_path / "layer-ranks.svg")
    assert "data14" in shown and "0.900" not in shown


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TradyError, match=r"Folder .*file cannot be made: File exists\. Choose another place"):
        draw_observations(observations(), tmp_path / "file")


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.3))
def test_labels_keep_their_distance_and_stay_below_the_top(heights: list[float], gap: float) -> None:
    found = spread(sorted(heights), gap, 1.0)
    assert len(found) == len(heights)
    assert all(high - low >= gap * (1 - 1e-6) for low, high in pairwise(found))
    assert max(found, default=0.0) <= 1.0
    free = spread(sorted(heights), gap, 99.0)
    assert sum(free) == pytest.approx(sum(heights), abs=1e-9)
    if all(high - low >= gap for low, high in pairwise(sorted(heights))):
        assert found == pytest.approx(sorted(heights))
