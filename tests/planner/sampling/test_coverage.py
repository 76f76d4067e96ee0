"""Closed forms against their sums, and against counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trady.planner.sampling.coverage import coverage_value, waiting_mass


@given(st.floats(0.001, 1.0), st.integers(0, 60))
def test_waiting_is_the_geometric_law_cut_at_the_epochs_there_were(share: float, epoch: int) -> None:
    terms = [wait * share * (1 - share) ** (wait - 1) for wait in range(1, epoch + 1)]
    assert waiting_mass(share, epoch) == pytest.approx(sum(terms), abs=1e-9)
    if epoch:
        drawn_before = sum(share * (1 - share) ** (wait - 1) for wait in range(1, epoch + 1))
        assert waiting_mass(share, epoch) / coverage_value(share, epoch) == pytest.approx(
            sum(terms) / drawn_before, rel=1e-6
        )


def test_what_never_draws_never_waits() -> None:
    assert waiting_mass(0.0, 5) == 0.0
    assert coverage_value(0.0, 5) == 0.0


def test_coverage_is_what_independent_draws_reach() -> None:
    rng = np.random.default_rng(0)
    reached = (rng.random((200_000, 6)) < 0.2).any(axis=1).mean()
    assert coverage_value(0.2, 6) == pytest.approx(reached, abs=0.004)
