"""``trady-profile``: results on stdout, progress and notes on stderr.

Held by ``tests/planner/cli/test_plan.py``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console, RenderableType

from trady.planner.cli.messages import CONTEXT, check_outputs, errors_told, output_path, stages, tell_written
from trady.planner.cli.model import model_options, take_model
from trady.planner.cli.options import options_of
from trady.planner.models import StepOptions
from trady.planner.options import NormMode, choose
from trady.planner.planning import CalibrationOptions

if TYPE_CHECKING:
    from trady.planner.planning import Prepared
    from trady.planner.priorities import GradientRecording, Priorities

_RECORDING: Final = "gradients.safetensors"


@click.command("trady-profile", context_settings=CONTEXT)
@click.argument("model")
@model_options
@click.option("-o", "--output", type=output_path(), help="Write the priorities (JSON).")
@click.option("--json", "as_json", is_flag=True, help="Print the priorities as JSON instead of a table.")
@click.option("--macs", is_flag=True, help="Count forward multiply-adds with fvcore beside our rule.")
@options_of(StepOptions, only=("norm",))
@click.option("--record", type=click.IntRange(min=1), metavar="N", help="Train N epochs and record the gradients.")
@click.option("--trace", type=output_path(), help=f"File of the recording.  [default: {_RECORDING}]")
@click.option(
    "--lr", type=click.FloatRange(min=0, min_open=True), default=0.01, help="Learning rate of the recorded training."
)
def profile_command(**options: Any) -> None:
    """Measure the gradient norm of every input channel of MODEL: the priorities of later plans.

    With --record, MODEL is also trained for a few epochs, and what every channel's gradient did is kept; no weight is.

    Example: trady-profile --data photos/ -o priorities.json torchvision:mobilenet_v2
    """
    with errors_told():
        _profile(**options)


def _profile(
    *,
    model: str,
    output: Path | None,
    as_json: bool,
    macs: bool,
    record: int | None,
    trace: Path | None,
    lr: float,
    **options: Any,
) -> None:
    recording = _recording_path(record, trace, options["data"])
    check_outputs(output, recording)
    norm = choose(NormMode, options["norm"], "Norm mode")
    from trady.planner.reports import priorities_report

    with stages() as say:
        prepared, calibration, measure = take_model(say, model, options, norm)
        priorities = _synthetic(prepared, say) if measure is None else measure()
        counted = _count_macs(prepared) if macs else None
        if record is not None and recording is not None:
            _record(prepared, record, lr, norm, calibration, say).save(recording)
    if output is not None:
        priorities.save(output)
    if as_json:
        click.echo(priorities.model_dump_json(indent=1))
    else:
        Console().print(priorities_report(priorities))
    if counted is not None:
        Console(stderr=as_json).print("", counted)
    tell_written(output, recording)


def _recording_path(record: int | None, trace: Path | None, data: str | None) -> Path | None:
    if record is None:
        if trace is not None:
            raise click.UsageError("--trace names the file of a recording. Give --record N with it.")
        return None
    if data is None:
        raise click.UsageError("--record trains on labelled data. Give --data with it.")
    return trace or Path(_RECORDING)


def _record(
    prepared: "Prepared",
    epochs: int,
    lr: float,
    norm: NormMode,
    calibration: CalibrationOptions,
    say: Callable[[str], None],
) -> "GradientRecording":
    from trady.planner.planning import record_from_data

    return record_from_data(prepared, epochs=epochs, learning_rate=lr, calibration=calibration, norm=norm, say=say)


def _synthetic(prepared: "Prepared", say: Callable[[str], None]) -> "Priorities":
    from trady.planner.priorities import priorities_without_data
    from trady.planner.tracing import trace

    say("Finding priorities without data")
    loaded = prepared.loaded
    traced = trace(loaded.model, prepared.inputs, loss=loaded.loss, head=prepared.asked_head)
    return priorities_without_data(
        loaded.model, prepared.inputs, traced, loaded.loss, has_weights=prepared.source.has_weights
    )


def _count_macs(prepared: "Prepared") -> RenderableType:
    from trady.planner.costs import forward_macs
    from trady.planner.reports import macs_report

    return macs_report(forward_macs(prepared.loaded.model, prepared.inputs))
