"""What rows say together, against brute force."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trady.planner.options import NormMode, OptimizerKind, Scope
from trady.planner.reports.summary import ChosenLayer
from trady.planner.studies.answers import Answers, Measure, bought
from trady.planner.studies.names import short_model
from trady.planner.studies.reports import answer_sentences, study_report
from trady.planner.studies.rows import Bought, Remedy, Setting, StudyRow
from trady.planner.studies.runs import Study


def row(budget: int, reached: float | None, *, batch_size: int = 1, model: str = "net") -> StudyRow:
    """A row that reaches a share; one that trains nothing for ``None``."""
    setting = Setting(
        model=model,
        input="3x8x8",
        norm=NormMode.FROZEN,
        dtype=None,
        batch_size=batch_size,
        optimizer=OptimizerKind.SGD,
        scope=Scope.UPDATE,
        budget_bytes=budget,
        epochs=5,
    )
    if reached is None:
        remedies = (Remedy(change="batch size 1", options="--batch-size 1", needed_bytes=budget),)
        return StudyRow(setting=setting, bought=None, why="too little", needed_bytes=2 * budget, remedies=remedies)
    layer = ChosenLayer(
        name="conv",
        kind="conv",
        channels=1,
        in_channels=2,
        gradient_bytes=1,
        stored_bytes=1,
        optimizer_bytes=0,
        index_bytes=4,
        value_share=reached,
    )
    found = Bought(
        status="optimal",
        value=reached,
        gap=0.0,
        rgn_reached=reached,
        captured_share=reached,
        next_kilobyte=0.001,
        used_bytes=budget,
        lines={"gradients": 1},
        scopes={"update": budget},
        layers=(layer,),
        num_layers=2,
        num_channels=1,
        all_channels=4,
        activation_sparsity=0.5,
        weight_derivative_sparsity=0.5,
        weight_grad_macs=1,
        backward_macs=2,
    )
    return StudyRow(setting=setting, bought=found)


points = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 10)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_what_no_row_dominates(found: list[tuple[int, int]]) -> None:
    rows = [row(budget, reached / 10) for budget, reached in found]
    front = {(kept.setting.budget_bytes, bought(kept).rgn_reached) for kept in Answers(rows).front()}
    places = {(budget, reached / 10) for budget, reached in found}

    def is_dominated(place: tuple[int, float]) -> bool:
        return any(other[0] <= place[0] and other[1] >= place[1] and other != place for other in places)

    assert front == {place for place in places if place[1] > 0 and not is_dominated(place)}


def test_the_knee_of_a_broken_line_is_where_it_breaks() -> None:
    steep = [row(2**step, step / 10) for step in range(1, 9)]
    flat = [row(2**step, 0.8 + (step - 8) / 100) for step in range(9, 16)]
    answers = Answers([*flat, *steep])
    knee = answers.knee(steep[0].setting.curve)
    assert knee is not None
    assert knee.setting.budget_bytes == 2**8


@pytest.mark.parametrize(
    "rows", [[], [row(1, 0.1)], [row(1, 0.1), row(2, 0.3)], [row(2**step, 0.5) for step in range(5)]]
)
def test_no_knee(rows: list[StudyRow]) -> None:
    assert Answers(rows).knee(row(1, 0.1).setting.curve) is None


def test_no_knee_below_the_chord() -> None:
    rows = [row(2**step, (step / 10) ** 3) for step in range(1, 10)]
    assert Answers(rows).knee(rows[0].setting.curve) is None


@given(points, st.floats(0, 1))
def test_the_smallest_that_reaches(found: list[tuple[int, int]], target: float) -> None:
    by_budget = dict(found)
    rows = [row(budget, reached / 10) for budget, reached in by_budget.items()]
    fitting = [budget for budget, reached in by_budget.items() if reached / 10 >= target]
    smallest = Answers(rows).smallest(target, rows[0].setting.curve, Measure.VALUE)
    assert (smallest.setting.budget_bytes if smallest else math.inf) == min(fitting, default=math.inf)


def test_the_largest_batch_of_each_budget() -> None:
    rows = [
        row(10, 0.1, batch_size=1),
        row(10, None, batch_size=2),
        row(20, 0.2, batch_size=1),
        row(20, 0.1, batch_size=2),
    ]
    found = {kept.setting.budget_bytes: kept.setting.batch_size for kept in Answers(rows).largest_batches()}
    assert found == {10: 1, 20: 2}


def test_what_varies() -> None:
    assert Answers([row(1, 0.1), row(2, 0.2)]).names.axes == []
    others = Answers([row(1, 0.1), row(1, 0.2, batch_size=4, model="other")])
    assert others.names.axes == ["model", "batch_size"]
    assert others.names.of(others.rows[1].setting) == "other, batch 4"


def test_two_models_are_never_called_the_same() -> None:
    twins = Answers([row(1, 0.1, model="old/net.pt"), row(1, 0.2, model="new/net.pt")])
    assert [twins.names.of(found.setting) for found in twins.rows] == ["old/net.pt", "new/net.pt"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("torchvision:resnet18", "resnet18"),
        ("nets/mine.pt", "mine.pt"),
        ("a.b:c", "c"),
        ("C:\\nets\\a.pt", "a.pt"),
        ("x", "x"),
    ],
)
def test_a_model_by_its_short_name(source: str, name: str) -> None:
    assert short_model(source) == name


def test_sentences_say_what_fits_and_what_does_not() -> None:
    steep = [row(1000 * 2**step, step / 10) for step in range(1, 9)]
    flat = [row(1000 * 2**step, 0.8 + (step - 8) / 100) for step in range(9, 16)]
    rows = [row(1000, None, batch_size=8), row(64_000, 0.5, batch_size=8), *steep, *flat]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(study_report(Study(tuple(rows), ("other: no layers",))))
    text = console.export_text()
    assert "17 rows: 16 train something, 1 do not fit." in text
    assert "batch 1: the knee is at 256.0 kB, which reaches 80.0 % with 1 of 2 layers" in text
    assert "batch 8: 1.0 kB trains nothing: it takes 2.0 kB; with batch size 1 1.0 kB are enough." in text
    assert "Failed: other: no layers" in text


def test_a_curve_without_a_budget_shows_what_a_smaller_one_reaches() -> None:
    rows = (row(1000, 0.25), row(4000, 0.5), row(3000, 0.75, batch_size=8))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(study_report(Study(rows)))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["batch", "1", "25.0", "%", "25.0", "%", "50.0", "%"] in lines
    assert ["batch", "8", "-", "75.0", "%", "75.0", "%"] in lines


def test_a_target_is_answered_for_every_curve() -> None:
    rows = (row(1000, 0.91), row(5000, 0.5, batch_size=8))
    sentences = list(answer_sentences(Answers(rows, 0.9)))
    assert sentences == [
        "batch 1: 1.0 kB is the smallest budget, to 1 %, that reaches 90 % (it reaches 91.00 %).",
        "batch 8: no budget reaches 90 %; all channels reach 50.00 %.",
    ]
