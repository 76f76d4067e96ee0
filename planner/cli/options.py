"""Command-line options made from the records that hold them.

Held by ``tests/planner/cli/test_plan.py``.
"""

from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
import click

from trady.planner.records import Option, Record

Command = TypeVar("Command", bound=Callable[..., Any])
Fields = TypeVar("Fields", bound=Record)


def values(kind: type[StrEnum]) -> click.Choice[str]:
    """The values of an enum as the choices of an option."""
    return click.Choice([member.value for member in kind])


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "NUMBERS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Read a text."""
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 0.5,0.5,0.5", param, ctx)


def options_of(
    record: type[Record], *, only: Collection[str] = (), leave_out: Collection[str] = ()
) -> Callable[[Command], Command]:
    """An option for each field that says how it is asked for, in the fields' order; defaults are the record's.

    Args:
        record: The record; fields without an :class:`Option` are not asked for.
        only: Names of the fields to ask for; all by default.
        leave_out: Names of fields not to ask for.

    Returns:
        A decorator of commands.
    """

    def decorate(command: Command) -> Command:
        for name in reversed(record.model_fields):
            if name not in leave_out and (not only or name in only):
                command = _with_option(record, name, command)
        return command

    return decorate


def taken(record: type[Fields], options: dict[str, object]) -> Fields:
    """The record of the values that its options got; they are taken out of the others.

    Returns:
        The record.

    Error:
        PlanError: A value is not what its field takes.
    """
    return record.read(fields_of(record, options))


def fields_of(record: type[Record], options: dict[str, Any]) -> dict[str, Any]:
    """What the options of a record's fields got, by the fields' names; it is taken out of the others."""
    names = {_argument(record, name): name for name in record.model_fields}
    return {name: options.pop(argument) for argument, name in names.items() if argument in options}


def _asked(record: type[Record], name: str) -> Option | None:
    return next((entry for entry in record.model_fields[name].metadata if isinstance(entry, Option)), None)


def _argument(record: type[Record], name: str) -> str:
    """The command's argument that holds a field."""
    option = _asked(record, name)
    return name if option is None else option.parameter or name


def _with_option(record: type[Record], name: str, command: Command) -> Command:
    field, option = record.model_fields[name], _asked(record, name)
    if option is None:
        return command
    default = None if option.optional or field.is_required() else field.default
    default = default.value if isinstance(default, StrEnum) else default
    shape: dict[str, Any] = {"help": option.help, "metavar": option.metavar}
    shape |= {} if default is None else {"default": default}
    kind, bounds = _plain(field.annotation)
    flag = "--" + (option.name or name).replace("_", "-")
    if option.type is not None:
        shape["type"] = click.Choice(option.type) if isinstance(option.type, list) else option.type
    elif kind is bool:
        shape["is_flag"] = True
        flag = f"{flag}/--no-{flag[2:]}" if default else flag
    elif kind == tuple[str, ...]:
        shape["multiple"] = True
    else:
        shape["type"] = _type_of(kind, [*bounds, *field.metadata])
    shape["required"] = field.is_required() and not option.optional
    return click.option(flag, _argument(record, name), **shape)(command)


def _plain(annotation: Any) -> tuple[Any, list[Any]]:
    """``int`` of ``Annotated[int, ...] | None``, and what is said of it; the last of several kinds."""
    bounds: list[Any] = []
    while (origin := get_origin(annotation)) in (Union, UnionType, Annotated):
        if origin is Annotated:
            annotation, *said = get_args(annotation)
            bounds += [bound for entry in said for bound in getattr(entry, "metadata", [entry])]
        else:
            annotation = [kind for kind in get_args(annotation) if kind is not NoneType][-1]
    return annotation, bounds


def _type_of(kind: Any, said: Collection[Any]) -> Any:
    """The click type of a kind of value and its bounds."""
    if get_origin(kind) is Literal:
        return click.Choice(list(get_args(kind)))
    if kind == tuple[float, ...]:
        return Numbers()
    if kind is Path:
        return click.Path(path_type=Path)
    if issubclass(kind, StrEnum):
        return values(kind)
    bounds = _bounds(said)
    if not bounds:
        return kind
    return click.IntRange(**bounds) if kind is int else click.FloatRange(**bounds)


def _bounds(said: Collection[Any]) -> dict[str, Any]:
    """The bounds of click's ranges."""
    bounds: dict[str, Any] = {}
    for entry in said:
        match entry:
            case annotated_types.Ge(least):
                bounds |= {"min": least}
            case annotated_types.Gt(least):
                bounds |= {"min": least, "min_open": True}
            case annotated_types.Le(most):
                bounds |= {"max": most}
            case annotated_types.Lt(most):
                bounds |= {"max": most, "max_open": True}
    return bounds
