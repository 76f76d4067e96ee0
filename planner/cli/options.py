"""Command-line options made from the records that hold them."""

from collections.abc import Callable, Collection
from enum import StrEnum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
import click

from trady.planner.records import Option, Record

Command = TypeVar("Command", bound=Callable[..., Any])


def values(kind: type[StrEnum]) -> click.Choice[str]:
    """The values of an enum as the choices of an option."""
    return click.Choice([member.value for member in kind])


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


def _with_option(record: type[Record], name: str, command: Command) -> Command:
    field = record.model_fields[name]
    option = next((entry for entry in field.metadata if isinstance(entry, Option)), None)
    if option is None:
        return command
    default = option.default if option.default is not None or field.is_required() else field.default
    default = default.value if isinstance(default, StrEnum) else default
    shape: dict[str, Any] = {"help": option.help, "metavar": option.metavar}
    shape |= {} if default is None else {"default": default}
    kind, bounds = _plain(field.annotation)
    flag = "--" + (option.name or name).replace("_", "-")
    if option.type is not None:
        shape["type"] = option.type
    elif kind is bool:
        shape["is_flag"] = True
        flag = f"{flag}/--no-{flag[2:]}" if default else flag
    elif get_origin(kind) is tuple:
        shape["multiple"] = True
    else:
        shape["type"] = _type_of(kind, [*bounds, *field.metadata])
    shape["required"] = field.is_required() and default is None
    return click.option(flag, option.parameter or name, **shape)(command)


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
    if issubclass(kind, StrEnum):
        return values(kind)
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
    if not bounds:
        return kind
    return click.IntRange(**bounds) if kind is int else click.FloatRange(**bounds)
