"""The replay's figure: written whole, readable as text, the same bytes each time."""

from pathlib import Path

import pytest
from PIL import Image

from replays import plan
from trady.planner.errors import TradyError
from trady.simulator import plot_replay, simulate


@pytest.mark.parametrize("policies", [["solver"], ["solver", "trady", "s-det-rgn", "d-det-rgn", "medyate"]])
def test_every_policy_is_named_at_its_line(tmp_path: Path, policies: list[str]) -> None:
    reports = [simulate(plan(), policy=policy, epochs=6, trials=20) for policy in policies]
    for name in ("first.svg", "second.svg", "replay.png"):
        plot_replay(reports, tmp_path / name)
    content = (tmp_path / "first.svg").read_text()
    assert content == (tmp_path / "second.svg").read_text()
    assert all(content.count(f">{policy}<") >= 5 for policy in policies)
    assert "budget" in content and "6 epochs, 20 trials, calibrated gradients" in content
    assert Image.open(tmp_path / "replay.png").size[0] > 1200


def test_one_epoch_is_drawn_as_points(tmp_path: Path) -> None:
    plot_replay([simulate(plan(), epochs=1, trials=3)], tmp_path / "replay.png")
    assert (tmp_path / "replay.png").stat().st_size > 10_000


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TradyError, match=r"suffix '.gif' is not known. Use .png or .svg"):
        plot_replay([simulate(plan(), epochs=1, trials=2)], tmp_path / "replay.gif")
