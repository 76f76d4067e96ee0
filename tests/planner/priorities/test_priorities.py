"""Priorities survive their file, and what is no priorities file is told."""

from pathlib import Path

import pytest

from trady.planner.errors import CalibrationError
from trady.planner.priorities.priorities import LayerPriority, Priorities, PrioritySource


def layer(name: str, norms: tuple[float, ...]) -> LayerPriority:
    return LayerPriority(
        name=name, weight_name=f"{name}.weight", channel_norms=norms, weight_elements=3, sample_elements=2
    )


@pytest.fixture
def priorities() -> Priorities:
    return Priorities(
        source=PrioritySource.DATA, origin="photos", num_batches=2, batch_size=4, tail_index=1.5,
        layers=(layer("small", (0.5, 0.5)), layer("large", (30.0, 40.0))),
    )  # fmt: skip


def test_ranks_by_hand(priorities: Priorities) -> None:
    large = priorities.by_weight["large.weight"]
    assert (large.norm_sum, large.norm, large.rgn, large.lara) == (70.0, 50.0, 14.0, 5.0)
    assert [found.name for found in priorities.ranked()] == ["large", "small"]
    assert [found.name for found in priorities.top(0.97)] == ["large"]


def test_file_round_trip(priorities: Priorities, tmp_path: Path) -> None:
    for name in ("first.json", "second.json"):
        priorities.save(tmp_path / name)
    assert Priorities.load(tmp_path / "first.json") == priorities
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 2}'])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(CalibrationError, match=r"cannot be read.*Make them with trady-profile"):
        Priorities.load(tmp_path / "other.json")


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"No such file.*trady-profile"):
        Priorities.load(tmp_path / "none.json")


def test_concentration_is_the_share_of_the_largest_hundredth() -> None:
    wide = layer("wide", (10.0, *[1.0] * 199))
    narrow = layer("narrow", (3.0, 4.0))
    found = Priorities(
        source=PrioritySource.DATA, origin="", num_batches=1, batch_size=1, tail_index=None, layers=(wide, narrow)
    )
    assert found.concentration == pytest.approx((100 + 1) / (100 + 199)), "narrow layers say nothing"
