"""The ledger: its lines, and the scopes they add up to. Bytes, no torch.

Held by ``tests/planner/costs/test_table_builder.py``.
"""

from typing import TYPE_CHECKING, Final

from trady.planner.errors import PlanError
from trady.planner.options import Scope
from trady.planner.records import Count, Record

if TYPE_CHECKING:
    pass


class Lines(Record):
    """The ledger's lines, in bytes.

    ``workspace`` is what makes the lines add up to the peak. It is negative where some of them never live together
    (gradients come when activations are gone), and ``None`` where the step's lifetimes are not known.
    """

    gradients: Count
    saved_activations: Count
    optimizer_state: Count
    draw_index: Count
    active_weights: Count
    always_trained: Count
    residuals: Count
    weights: Count
    inputs: Count
    workspace: int | None = None


UPDATE_LINES: Final = ("gradients", "saved_activations", "optimizer_state", "draw_index")


TRAINING_LINES: Final = (*UPDATE_LINES, "active_weights", "always_trained", "residuals")


PEAK_LINES: Final = (*TRAINING_LINES, "weights", "inputs", "workspace")


SCOPE_LINES: Final = {Scope.UPDATE: UPDATE_LINES, Scope.TRAINING: TRAINING_LINES, Scope.PEAK: PEAK_LINES}


class Scopes(Record):
    """Sums of lines that a budget can hold, in bytes; the peak is ``None`` where the workspace is."""

    update: Count
    training: Count
    peak: Count | None = None

    def of(self, scope: Scope) -> int:
        """Bytes of a scope.

        Raises:
            PlanError: The peak is not known.
        """
        found: int | None = getattr(self, scope.value)
        if found is None:
            raise PlanError("The peak of this step is not known. Use scope 'training'.")
        return found


class Ledger(Record):
    """Lines and the scopes they add up to."""

    lines: Lines
    scopes: Scopes

    @classmethod
    def of(cls, lines: Lines) -> "Ledger":
        """Add the lines up."""
        update = sum(getattr(lines, name) for name in UPDATE_LINES)
        training = sum(getattr(lines, name) for name in TRAINING_LINES)
        peak = None if lines.workspace is None else sum(getattr(lines, name) for name in PEAK_LINES)
        return cls(lines=lines, scopes=Scopes(update=update, training=training, peak=peak))
