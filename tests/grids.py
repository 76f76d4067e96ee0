"""Grids of parameters of which a few cases stand for the rest."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(is_fast: Callable[..., bool], *values: Iterable[Any]) -> list[Any]:
    """All combinations of some values; those not chosen run with the slow tests.

    Args:
        is_fast: Whether a combination, one argument for each parameter, always runs.
        values: The values of each parameter.
    """
    return [
        pytest.param(*case, marks=() if is_fast(*case) else pytest.mark.slow) for case in itertools.product(*values)
    ]
