"""The model that a command is about: loaded, given its head and its data.

Held by ``tests/planner/cli/test_plan.py``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from trady.planner.cli.options import Command, options_of, taken
from trady.planner.options import NormMode
from trady.planner.planning import CalibrationOptions, LoadingOptions, PreparationOptions

if TYPE_CHECKING:
    from trady.planner.planning import Prepared
    from trady.planner.priorities import Priorities


def model_options(command: Command) -> Command:
    """The options that say how a model is loaded, on which data, and what its gradient norms are measured on."""
    for record in (CalibrationOptions, PreparationOptions, LoadingOptions):
        command = options_of(record)(command)
    return command


def take_model(
    say: Callable[[str], None], model: str, options: dict[str, object], norm: NormMode
) -> "tuple[Prepared, CalibrationOptions, Callable[[], Priorities] | None]":
    """The model with its head and data, and a function that measures priorities where there is data to do it on.

    Args:
        say: Called with a line of text before each stage.
        model: As typed.
        options: Those of :func:`model_options` are taken out.
        norm: What norms with running statistics do while gradients are measured.
    """
    loading, preparation = taken(LoadingOptions, options), taken(PreparationOptions, options)
    calibration = taken(CalibrationOptions, options)
    from trady.planner.models import load_model
    from trady.planner.planning import prepare, priorities_from_data

    say(f"Loading {model}")
    loaded = load_model(model, **dict(loading))
    for note in loaded.notes:
        click.echo(f"Note: {note}", err=True)
    prepared = prepare(loaded, **dict(preparation))
    if prepared.data is None:
        return prepared, calibration, None

    def measure() -> "Priorities":
        priorities = priorities_from_data(prepared, norm=norm, say=say, **dict(calibration))
        _tell_skipped(prepared.data)
        return priorities

    return prepared, calibration, measure


def _tell_skipped(data: object) -> None:
    skipped = getattr(data, "skipped", ())
    if skipped:
        names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        click.echo(f"Note: {len(skipped)} unreadable items were skipped: {names}", err=True)
