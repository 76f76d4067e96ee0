"""What every draw rule keeps to: a pure function of plan, seed, epoch and the norms observed so far.

Held by ``tests/planner/sampling/test_draw_contract.py`` for every strategy.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trady.planner.ledger import BatchedLedger
from trady.planner.plan import Plan
from trady.planner.sampling.budget_state import BudgetState
from trady.planner.sampling.draws import ChannelDraws

Norms: TypeAlias = NDArray[np.float64]


class Observes(StrEnum):
    """Which gradient norms a draw looks at."""

    NOTHING = "nothing"
    """None."""
    OWN_DRAWS = "own-draws"
    """Those of channels that trained, as they last were."""
    DENSE_PASS = "dense-pass"
    """All of them, in a pass of its own before each draw."""


class DrawRule(ABC):
    """How channels are drawn inside the eligible layers, in many runs at once.

    Args:
        plan: The plan.
        ledger: Of its table.
    """

    observes: ClassVar[Observes] = Observes.NOTHING
    #: Whether each epoch fills the budget anew: then counts differ from draw to draw.
    fills_budget: ClassVar[bool] = True
    #: Whether the channels of a layer are equally likely.
    is_uniform: ClassVar[bool] = False

    def __init__(self, plan: Plan, ledger: BatchedLedger) -> None:
        self.plan, self.table, self.ledger = plan, plan.table, ledger
        self.sizes = np.array([layer.in_channels for layer in plan.table.layers], dtype=np.int64)
        self.eligible = np.array(plan.strategy.eligible, dtype=np.int64)

    @abstractmethod
    def draws(
        self, epochs: Sequence[int], seeds: Sequence[int], observed: Mapping[int, Norms] | None = None
    ) -> Iterator[ChannelDraws]:
        """The draws of consecutive epochs, from any on, one after the other.

        Args:
            epochs: The epochs.
            seeds: Seed of each run.
            observed: Index of a layer -> last observed norms ``[runs, channels]``, ``NaN`` where none was; looked at
                only by rules that observe.

        Yields:
            One epoch's draws, in order; memory of their channels may be used again for the next.
        """

    def full_budget(self, runs: int, *, nested: bool) -> BudgetState:
        """The budget in each of some runs, nothing spent."""
        return BudgetState(self.ledger, self.plan.settings.scope, self.plan.settings.budget_bytes, runs, nested=nested)


def blocks(epochs: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Epochs that are drawn at a time: so many, one at the least."""
    return (epochs[first : first + max(1, size)] for first in range(0, len(epochs), max(1, size)))
