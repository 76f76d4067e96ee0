"""Observations against scipy, counting by hand and closed forms; no torch is needed for them."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from tables import cost_table, layer_costs, plan_of
from trady.planner.errors import CalibrationError
from trady.planner.ledger.cost_records import GroupInput, InputGroup
from trady.planner.options import NormMode
from trady.planner.plan.plan import Plan
from trady.planner.priorities.gradient_recordings import GradientRecording, RecordedLayer, RecordingHeader
from trady.planner.priorities.priorities import LayerPriority, top_layers
from trady.simulator.observations import average_ranks, observe, recording_labels, spearman, top_overlap

CHANNELS = (3, 40, 12, 20)
Array = np.ndarray[Any, Any]


def plan(norms: list[Array] | None = None, channels: tuple[int, ...] = CHANNELS) -> Plan:
    layers = [layer_costs(index, count, index, weight_elements=3 + index) for index, count in enumerate(channels)]
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=16, kept_by=None),)) for _ in channels]
    found = norms or [np.full(count, float(index + 1)) for index, count in enumerate(channels)]
    return plan_of(
        cost_table(layers, groups), budget_bytes=100_000, norms=[tuple(map(float, values)) for values in found]
    )


def recording(
    norms: list[Array], *, origin: str = "photos", seed: int = 0, rate: float = 0.01, tail: float | None = 1.4
) -> GradientRecording:
    epochs = len(norms[0])
    header = RecordingHeader(
        fingerprint="0" * 64,
        source="tests",
        origin=origin,
        num_batches=2,
        batch_size=4,
        learning_rate=rate,
        norm=NormMode.FROZEN,
        seed=seed,
        sketch_size=8,
        layers=tuple(
            RecordedLayer(name=f"layer{index}", weight_name=f"layer{index}.weight", channels=values.shape[1])
            for index, values in enumerate(norms)
        ),
        tail_index=(tail,) * epochs,
        losses=tuple(1.0 / (epoch + 1) for epoch in range(epochs)),
    )
    arrays = tuple(values.astype(np.float32) for values in norms)
    return GradientRecording(header, arrays, tuple(np.zeros((*values.shape, 8), np.float32) for values in arrays))


def random_norms(seed: int, epochs: int = 3, channels: tuple[int, ...] = CHANNELS) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.random((epochs, count)) * random.random() for count in channels]


TIED = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30)


@given(TIED)
def test_rank_correlation_is_scipys_with_ties(pairs: list[tuple[int, int]]) -> None:
    first, second = map(list, zip(*pairs, strict=True))
    assert average_ranks(first).tolist() == rankdata(first).tolist()
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_rank_correlation_at_its_ends() -> None:
    values = [3.0, 1.0, 2.0]
    assert spearman(values, values) == 1.0
    assert spearman(values, [-value for value in values]) == -1.0


def test_overlap_counts_the_largest_of_both() -> None:
    assert top_overlap([5, 1, 4, 3], [1, 5, 4, 3], 2) == 1
    assert top_overlap([5, 1, 4, 3], [1, 5, 4, 3], 4) == 4


def test_layers_correlate_as_scipy_says_of_norms_over_cost() -> None:
    made = plan()
    recordings = [recording(random_norms(seed), seed=seed) for seed in (0, 1)]
    found = observe(made, recordings).layer_ranks
    assert found is not None
    assert found.labels == ("plan", "photos, seed 0", "photos, seed 1")
    cost = [layer.weight_elements + layer.sample_elements for layer in made.table.layers]
    own = [sum(made.channel_norms(index)) / cost[index] for index in range(4)]
    rgn = [np.stack([one.norms[index].sum(axis=1) / cost[index] for index in range(4)], axis=1) for one in recordings]
    means = [own, *(values.mean(axis=0) for values in rgn)]
    for row, first in enumerate(means):
        for column, second in enumerate(means):
            assert found.across[row][column] == pytest.approx(spearmanr(first, second).statistic)
    for place, values in enumerate(rgn):
        for epoch in range(3):
            assert found.with_plan[place][epoch] == pytest.approx(spearmanr(own, values[epoch]).statistic)
            assert found.with_first[place][epoch] == pytest.approx(spearmanr(values[0], values[epoch]).statistic)
            assert found.epochs[place][epoch][0] == found.with_first[place][epoch]


def test_channels_correlate_as_scipy_says_in_layers_of_ten_or_more() -> None:
    norms = random_norms(3)
    (found,) = observe(plan(), [recording(norms)]).channel_ranks or ()
    assert found.num_layers == 3
    for epoch in range(2):
        expected = [spearmanr(values[epoch], values[epoch + 1]).statistic for values in norms[1:]]
        assert found.median[epoch] == pytest.approx(np.median(expected))
        assert found.low[epoch] == pytest.approx(np.quantile(expected, 0.05))
        assert found.high[epoch] == pytest.approx(np.quantile(expected, 0.95))


def test_channels_that_stay_and_channels_that_are_drawn_anew() -> None:
    """The same norms each epoch overlap wholly; independent ones as often as chance says."""
    channels = (300, 500)
    random = np.random.default_rng(0)
    constant = [np.repeat(random.random((1, count)), 3, axis=0) for count in channels]
    fresh = [random.random((200, count)) for count in channels]
    same, anew = observe(plan(channels=channels), [recording(constant), recording(fresh)]).channel_ranks or ()
    assert same.overlap == (1.0, 1.0) and same.median == (1.0, 1.0)
    assert anew.chance == pytest.approx(0.1)
    assert np.mean(anew.overlap) == pytest.approx(0.1, abs=0.01)
    assert np.mean([value for value in anew.median if value is not None]) == pytest.approx(0.0, abs=0.02)


@given(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=4, max_size=4))
def test_top_layers_are_those_of_the_priorities(values: list[float]) -> None:
    made = plan([np.full(count, value) for count, value in zip(CHANNELS, values, strict=True)])
    curve = observe(made).rgn
    if not sum(values):
        assert curve is None
        return
    assert curve is not None
    layers = [
        LayerPriority(
            name=layer.name,
            weight_name=layer.weight_name,
            channel_norms=(value,) * layer.in_channels,
            weight_elements=layer.weight_elements,
            sample_elements=layer.sample_elements,
        )
        for layer, value in zip(made.table.layers, values, strict=True)
    ]
    top = top_layers(layers, 0.97)
    assert curve.num_top == len(top)
    if len({layer.rgn for layer in layers}) == len(layers):
        assert list(curve.layers[: curve.num_top]) == [layers[index].name for index in top]
    assert curve.cumulative[-1] == pytest.approx(1.0)
    assert list(curve.cumulative) == sorted(curve.cumulative) and list(curve.rgn) == sorted(curve.rgn, reverse=True)


def test_norms_that_vanish_when_divided_give_no_curve() -> None:
    """The smallest number there is, over a layer's cost, is zero: as if there were no gradient."""
    assert observe(plan([np.full(count, 5e-324 * (not place)) for place, count in enumerate(CHANNELS)])).rgn is None


def test_what_was_not_recorded_is_none() -> None:
    alone = observe(plan())
    assert alone.rgn is not None
    assert alone.layer_ranks is None and alone.channel_ranks is None and alone.courses is None
    one_epoch = observe(plan(), [recording(random_norms(0, epochs=1), tail=None)])
    assert one_epoch.channel_ranks is None
    assert one_epoch.courses is not None and one_epoch.courses[0].tail_index == (None,)
    few_channels = observe(plan(channels=(3, 4)), [recording(random_norms(0, channels=(3, 4)))])
    assert few_channels.channel_ranks is None
    equal = observe(plan(), [recording([np.ones((2, count)) / count for count in CHANNELS])])
    assert equal.channel_ranks is not None and equal.channel_ranks[0].median == (None,)


def test_json_reads_back() -> None:
    found = observe(plan(), [recording(random_norms(0))])
    read = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert read["courses"][0] == {"label": "photos", "tail_index": [1.4] * 3, "losses": [1.0, 0.5, 1 / 3]}
    assert read["layer_ranks"]["across"][0][0] == 1.0
    assert json.loads(json.dumps(observe(plan()).as_json()))["layer_ranks"] is None


def test_a_plan_may_leave_layers_out() -> None:
    found = observe(plan(channels=CHANNELS[:3]), [recording(random_norms(0))])
    assert found.channel_ranks is not None and found.channel_ranks[0].num_layers == 2


def test_recordings_of_another_model_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"of another model than the plan of 'tests': layer 'layer1'"):
        observe(plan(), [recording(random_norms(0, channels=(3, 41, 12, 20)))])


def test_labels_tell_recordings_apart() -> None:
    norms = random_norms(0)
    assert recording_labels([recording(norms, seed=5)]) == ("photos",)
    assert recording_labels([recording(norms), recording(norms, origin="cats", seed=1)]) == ("photos", "cats")
    assert recording_labels([recording(norms), recording(norms, rate=0.5)]) == ("photos, lr 0.01", "photos, lr 0.5")
    assert recording_labels([recording(norms), recording(norms)]) == ("photos", "photos (2)")


def test_observing_needs_no_torch() -> None:
    program = "import sys, trady.simulator.observations; print(*{'torch', 'scipy', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
