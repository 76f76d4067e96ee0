"""Every error a user of Trady can meet.

A message reads: subject - the rule it broke - the value with its unit - what to do next.

Held by ``tests/planner/planning/test_planning.py``.
"""

from collections.abc import Sequence


class TradyError(Exception):
    """Something the user can put right; the command line prints it and exits with 1."""


class UnitError(TradyError, ValueError):
    """A size that cannot be read as a number of bytes."""


class LoadingError(TradyError):
    """A model that cannot be built from what was given."""


class UntrustedPickleError(LoadingError):
    """A pickle that names code outside the allow-list; it was not run.

    Args:
        message: What was refused and what to do.
        foreign_globals: The ``module.name`` references that are not allowed.
    """

    def __init__(self, message: str, foreign_globals: Sequence[str]) -> None:
        super().__init__(message)
        self.foreign_globals = tuple(foreign_globals)


class DataError(TradyError):
    """Labelled data that cannot be read or cannot be learned from."""


class TracingError(TradyError):
    """A model whose training step cannot be followed on fake tensors."""


class CalibrationError(TradyError):
    """Gradients that cannot serve as priorities (not finite, of another model)."""


class PlanError(TradyError):
    """A plan that cannot be made, read or applied."""


class BudgetError(PlanError):
    """A budget under which no layer can be trained."""


class StrategyError(PlanError):
    """A strategy asked for without what it needs, or by an unknown name."""


class StudyError(TradyError):
    """A study that cannot be run or continued."""


class EngineError(TradyError):
    """A plan that cannot be executed on this model, or a step that breaks its contract."""
