"""The closed sets of choices a plan is made from; public functions also take their values.

Held by ``tests/planner/planning/test_planning.py``.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeVar

from trady.planner.errors import StrategyError

Choice = TypeVar("Choice", bound=StrEnum)


class Scope(StrEnum):
    """Which lines of the ledger the budget holds."""

    UPDATE = "update"
    TRAINING = "training"
    PEAK = "peak"


class NormMode(StrEnum):
    """What normalisation layers with running statistics do while the rest trains."""

    FROZEN = "frozen"
    TRAIN = "train"


class OptimizerKind(StrEnum):
    """Optimizers by what they keep for each trained element."""

    SGD = "sgd"
    SINKGD = "sinkgd"
    MOMENTUM = "momentum"
    ADAM = "adam"
    ADAMW = "adamw"


#: What a plan is for unless said: as small as SGD between steps, and better by ``docs/accuracy.md``.
DEFAULT_OPTIMIZER: Final = OptimizerKind.SINKGD


#: Of the optimizer ``momentum``.
DEFAULT_MOMENTUM: Final = 0.9


class DType(StrEnum):
    """Element types a model can be planned in; ``INT8`` is accounting only."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"


class MemoryFormat(StrEnum):
    """Layout of four-dimensional activations and weights."""

    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"


class Inclusion(StrEnum):
    """How likely the channels of a layer are to be drawn, under the solver's fixed counts."""

    UNIFORM = "uniform"
    """All alike."""
    WEIGHTED = "weighted"
    """The larger the gradient norm, the likelier: for layers whose norm lies in few channels, as transformers' does."""


class Strategy(StrEnum):
    """A layer rule, a draw rule, and whether the draw is fixed or made anew each epoch."""

    SOLVER = "solver"
    TRADY = "trady"
    S_TOPK_RANDOM = "s-topk-random"
    D_FULL_RANDOM = "d-full-random"
    S_FULL_RANDOM = "s-full-random"
    D_DET_RGN = "d-det-rgn"
    S_DET_RGN = "s-det-rgn"
    SU = "su"
    LARA_TRADY = "lara-trady"
    MEDYATE = "medyate"


def choose(kind: type[Choice], value: str, subject: str) -> Choice:
    """Read a choice by its value, with the known values in the error.

    Raises:
        StrategyError: The value is none of the known ones.
    """
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise StrategyError(f"{subject} {value!r} is unknown. Known: {known}.") from None


def read_patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Patterns as a tuple; a text is one pattern."""
    return (given,) if isinstance(given, str) else tuple(given)


def check_keywords(function: str, given: Mapping[str, object], known: type) -> None:
    """Refuse what a function does not take, as Python itself does for arguments by name.

    Args:
        function: Name of the function.
        given: Its keyword arguments.
        known: The ``TypedDict`` of those it takes (PEP 692).

    Raises:
        TypeError: One is unknown.
    """
    unknown = given.keys() - known.__annotations__.keys()
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {min(unknown)!r}")
