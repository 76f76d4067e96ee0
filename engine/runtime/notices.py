"""Warnings of another machine than planned, and of drawn layers that do not train: each is named once.

Held by ``tests/engine/test_engine.py``.
"""

import warnings
from collections.abc import Iterable

from torch import nn

from trady.planner.options import Scope
from trady.planner.plan import Plan
from trady.planner.planning import machine_difference


class Notices:
    """What an engine warned of; a copy of the engine does not say it again."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    @staticmethod
    def tell_machine(plan: Plan) -> None:
        """Warn of a budget of the peak that was planned on another machine: what kernels work in is in it."""
        difference = machine_difference(plan) if plan.settings.scope is Scope.PEAK else ""
        if difference:
            warnings.warn(difference, stacklevel=3)

    def tell_unused(self, drawn: Iterable[str], used: set[str]) -> None:
        """Warn of drawn layers that no redirected operation of a forward pass read."""
        unused = [name for name in drawn if name not in used and name not in self._told]
        if not unused:
            return
        self._told.update(unused)
        warnings.warn(
            f"Drawn layers {', '.join(unused[:5])} were not used in this forward pass by an operation that the engine "
            "redirects, and do not train in it. If the model skips them on purpose all is well; else plan with "
            f"--exclude {unused[0]}.",
            stacklevel=4,
        )

    def tell_without_gradient(
        self, slices: Iterable[tuple[str, nn.Parameter]], trained: Iterable[nn.Parameter]
    ) -> None:
        """Warn of slices without a gradient where something else has one.

        A checkpointed region is entered again only if its outputs require a gradient.

        Args:
            slices: Drawn weights by name.
            trained: All that trains.
        """
        new = [name for name, compact in slices if compact.grad is None and name not in self._told]
        if new and any(parameter.grad is not None for parameter in trained):
            self._told.update(new)
            warnings.warn(
                f"Drawn weights {', '.join(new[:5])} have no gradient at this step. A checkpointed region whose inputs "
                "require none gives none to what is in it, where it is checkpointed with reentry: checkpoint with "
                "use_reentrant=False.",
                stacklevel=4,
            )
