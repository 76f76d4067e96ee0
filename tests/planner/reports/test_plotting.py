"""What figures share: labels that can be read and told apart."""

from itertools import pairwise

from matplotlib.figure import Figure

from trady.planner.reports.plotting import label_bytes, thinned_labels


def test_sizes_on_an_axis_have_the_digits_that_tell_them_apart() -> None:
    axis = Figure().subplots().yaxis
    label_bytes(axis)
    shown = axis.get_major_formatter()
    assert [shown(value, 0) for value in (0, 812, 40_000, 90_850_000, 90_860_000, 1.5e9)] == [
        "0 B", "812 B", "40 kB", "90.85 MB", "90.86 MB", "1.5 GB"
    ]  # fmt: skip


def test_labels_are_thinned_in_favour_of_what_trains() -> None:
    assert thinned_labels(5, [1], most=10) == [0, 1, 2, 3, 4]
    labels = thinned_labels(225, [100, 101, 224], most=100)
    assert {100, 224} <= set(labels) and 101 not in labels
    assert len(labels) <= 101 and min(b - a for a, b in pairwise(labels)) >= 3
