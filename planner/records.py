"""What everything that is stored is made of, and everything that is asked for.

Held by ``tests/planner/planning/test_planning.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trady.planner.errors import PlanError
from trady.planner.options import choose

#: A whole number of things, 0 or more.
Count = Annotated[int, Field(ge=0)]
#: A whole number of things, 1 or more.
Whole = Annotated[int, Field(ge=1)]


class Record(BaseModel):
    """Base of everything stored in a file: no unknown fields, no silent conversions, no changes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Self:
        """From values as a user gives them; those of other records are passed over.

        Raises:
            PlanError: A value is not what its field takes; all such values are named.
        """
        try:
            return cls(**{name: value for name, value in values.items() if name in cls.model_fields})
        except ValidationError as error:
            raise PlanError(problems_of(error)) from error


@dataclass(frozen=True)
class Option:
    """How a field of a record is asked for on a command line, in its annotation.

    Args:
        help: What it does, on one line.
        metavar: What stands for its value.
        name: The option's own name where it is not the field's.
        parameter: Name of the command's argument where it is not the field's.
        type: Type of the value as typed, a click type; by default what the annotation says.
        optional: Whether it may be left out although the field needs a value: ``None`` then.
    """

    help: str
    metavar: str | None = None
    name: str = ""
    parameter: str = ""
    type: Any = None
    optional: bool = False


def one_of(kind: type[StrEnum], subject: str) -> BeforeValidator:
    """Reads a member of an enum by its value, and leaves ``None`` alone; errors name the known ones.

    Args:
        kind: The enum.
        subject: What it chooses, the first words of an error.
    """
    return BeforeValidator(lambda value: None if value is None else choose(kind, value, subject))


def problems_of(error: ValidationError) -> str:
    """Every value that a record refused: ``Epochs must be 1 or more, got 0.``."""
    told = []
    for problem in error.errors():
        bounds = problem.get("ctx", {})
        rule = problem["msg"].removeprefix("Input should be ")
        if "ge" in bounds:
            rule = f"{bounds['ge']:g} or more"
        elif "gt" in bounds:
            rule = f"above {bounds['gt']:g}"
        name = ".".join(map(str, problem["loc"])).replace("_", " ").capitalize()
        told.append(f"{name} must be {rule}, got {problem['input']!r}.")
    return " ".join(told)
