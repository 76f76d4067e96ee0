"""What the solver is asked and what it answers: limits, channel counts, how the search ended. No ortools.

Held by ``tests/planner/solver/test_cp_sat.py``.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from trady.planner.options import Scope
from trady.planner.sampling import DEFAULT_HORIZON

#: Share of the best value that a search may leave unproven, and that fewer residual bytes are always worth.
PROOF_GAP: Final = 1e-3
#: Share of the best value that may be given up for less backward work, unless said.
DEFAULT_TOLERANCE: Final = 0.01


class SolverStatus(StrEnum):
    """How a search ended."""

    OPTIMAL = "optimal"
    """The best is proven within :data:`PROOF_GAP`."""
    FEASIBLE = "feasible"
    """Stopped by the time limit; the gap says how far from the bound."""
    INFEASIBLE = "infeasible"
    """No layer can be trained within the limits."""
    UNKNOWN = "unknown"
    """Stopped by the time limit before anything was found."""


@dataclass(frozen=True)
class Limits:
    """What a selection must respect.

    Args:
        budget_bytes: Bytes of the scope.
        scope: Lines the budget holds.
        min_channels: Fewest channels a chosen layer trains (or all of them, where it has fewer).
        max_backward_macs: Most multiply-adds of the backward pass; ``None`` for no limit.
        horizon: Number of draws a layer's value looks ahead; 1 for a static choice.
        tolerance: Share of the best value that may be given up for less backward work, from 0 to below 1.
        deterministic_time: Search effort of a stage, in CP-SAT's deterministic seconds.
        seed: Seed of the search.
    """

    budget_bytes: int
    scope: Scope
    min_channels: int = 1
    max_backward_macs: int | None = None
    horizon: float = DEFAULT_HORIZON
    tolerance: float = DEFAULT_TOLERANCE
    deterministic_time: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class Selection:
    """Chosen channel counts.

    Args:
        counts: Channels of each layer of the cost table.
        status: How the search ended.
        value: Value of the counts, as a share of the value of training everything.
        bound: Proven upper bound of that share.
        best_counts: The counts of the greatest value found, less backward work or not.
        best_value: Their value.
    """

    counts: tuple[int, ...]
    status: SolverStatus
    value: float
    bound: float
    best_counts: tuple[int, ...]
    best_value: float

    @property
    def gap(self) -> float:
        """Distance to the bound, relative to it: what was given up, and what was not proven."""
        return max(0.0, (self.bound - self.value) / self.bound) if self.bound > 0 else 0.0

    @property
    def given_up(self) -> float:
        """Share of the greatest value found that was given up."""
        return max(0.0, 1 - self.value / self.best_value) if self.best_value > 0 else 0.0


def rounded_figure(value: float) -> float:
    """A share as files hold it: nine digits are the same on every machine."""
    return float(f"{value:.9g}")
