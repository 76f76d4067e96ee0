"""``trady-plan`` and ``trady-profile``: results on stdout, progress and notes on stderr."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console

from trady.planner.cli.messages import (
    CONTEXT,
    check_outputs,
    errors_told,
    output_path,
    read_scheme,
    stages,
    tell_written,
)
from trady.planner.cli.options import Command, options_of, values
from trady.planner.options import (
    DType,
    MemoryFormat,
    NormMode,
)
from trady.planner.planning import ChoiceOptions
from trady.planner.units import parse_bytes

_FLOATS = [kind.value for kind in DType if kind is not DType.INT8]
_RECORDING = "gradients.safetensors"
#: Options of trady-profile that do not say which model.
_ABOUT_PROFILE = {"output", "as_json", "macs", "norm", "record", "trace", "lr"}


class _BatchSize(click.ParamType[int | Literal["max"]]):
    """A number of samples, or ``max``."""

    name = "SIZE|max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Literal["max"]:
        if value == "max":
            return "max"
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of samples above 0 nor max.", param, ctx)
        return int(value)


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 0.5,0.5,0.5") from error


def model_options(command: Command) -> Command:
    """The model and options that say which, on which inputs; shared by every command that loads one."""
    shape = click.option("--input", "input_shape", metavar="SHAPE", help="Shape of one sample: 3x224x224, tokens:128.")
    return click.argument("model")(shape(loading_options(command)))


def loading_options(command: Command) -> Command:
    """Options that say how models are loaded, their input size left out."""
    options = [
        click.option("--arch", metavar="FACTORY", help="Factory of a state dict, for instance torchvision:resnet18."),
        click.option("--loss", metavar="MODULE:FUNCTION", help="loss(outputs, targets)."),
        click.option("--data", metavar="SOURCE", help="Class folders, .npz, .csv/.tsv, module:function."),
        click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json for text data."),
        click.option("--mean", metavar="R,G,B", callback=_numbers, help="Mean of pictures scaled to 0..1."),
        click.option("--std", metavar="R,G,B", callback=_numbers, help="Deviation of the same."),
        click.option("--classes", type=click.IntRange(min=2), help="Outputs of the head; the data's by default."),
        click.option("--head", default="auto", metavar="NAME", help="Layer that always trains: auto, none or a name."),
        click.option("--pretrained/--no-pretrained", default=True, help="Weights of named models."),
        click.option("--meta", is_flag=True, help="Build a large model without its memory."),
        click.option("--trust-pickle", is_flag=True, help="Run the code a file names: your own only."),
        click.option("--calibration-batches", type=click.IntRange(min=1), default=8, help="Batches to measure."),
        click.option("--calibration-batch-size", type=click.IntRange(min=1), default=16, help="Samples in each."),
        click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the calibration."),
    ]  # fmt: skip
    return _with_options(command, options)


def _with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def step_options(command: Command) -> Command:
    """Options that say how the step is run."""
    options = [
        click.option("--norm", type=values(NormMode), default="frozen", help="Norms with running statistics."),
        click.option("--dtype", type=values(DType), help="Cast the model; int8 is accounting in scope update."),
        click.option("--amp", type=click.Choice(_FLOATS[1:]), help="Run under autocast."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Device to plan for."),
        click.option("--memory-format", type=values(MemoryFormat), default="contiguous", help="Layout."),
        click.option("--train", multiple=True, metavar="PATTERN", help="Parameters that always train: '*.norm.*'."),
    ]  # fmt: skip
    return _with_options(command, options)


@click.command("trady-plan", context_settings=CONTEXT)
@model_options
@step_options
@options_of(ChoiceOptions)
@click.option(
    "--batch-size", type=_BatchSize(), default="1", help="Samples of a micro-batch, or max: the most that fit."
)
@click.option("--min-value", type=click.FloatRange(0, 1), help="Least value with --batch-size max.  [default: 0]")
@click.option("--priorities", type=click.Path(path_type=Path), help="File made by trady-profile.")
@click.option("-o", "--output", type=output_path(), help="Write the plan (JSON).")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON instead of tables.")
@click.option("--plot", type=output_path(), help="Draw bytes by layer with RGN beside (.png, .svg).")
@click.option("--html", type=output_path(), help="Show the plan as one page that opens offline (.html).")
@click.option("--graph", type=output_path(), help="Save the traced graph (.json, .graphml).")
@click.option("--draw", type=output_path(), help="Draw the network, coloured by what it keeps (.svg, .png).")
def plan_command(**options: Any) -> None:
    """Plan what of MODEL to fine-tune within a budget of bytes.

    MODEL is a .pt or .pth file (a pickled module, or a state dict with --arch), .safetensors with --arch, a
    torch.export .pt2, torchvision:NAME, timm:NAME, transformers:NAME, or package.module:function.

    Example: trady-plan --budget 256KB --data photos/ -o plan.json torchvision:mobilenet_v2
    """
    with errors_told():
        _plan(**options)


@click.command("trady-profile", context_settings=CONTEXT)
@model_options
@click.option("-o", "--output", type=output_path(), help="Write the priorities (JSON).")
@click.option("--json", "as_json", is_flag=True, help="Print the priorities as JSON instead of a table.")
@click.option("--macs", is_flag=True, help="Count forward multiply-adds with fvcore beside our rule.")
@click.option("--norm", type=values(NormMode), default="frozen", help="Norms with running statistics.")
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


def _plan(
    *,
    budget: str,
    batch_size: int | Literal["max"],
    min_value: float | None,
    priorities: Path | None,
    scheme: str | None,
    output: Path | None,
    as_json: bool,
    plot: Path | None,
    html: Path | None,
    graph: Path | None,
    draw: Path | None,
    **options: Any,
) -> None:
    parse_bytes(budget)
    if min_value is not None and batch_size != "max":
        raise click.UsageError("--min-value is for --batch-size max. Leave it out, or give both.")
    check_outputs(output, plot, html, graph, draw)
    _check_figures(plot, html, graph, draw)
    from trady.planner.planning import make_plan, plan_largest_batch
    from trady.planner.priorities import Priorities
    from trady.planner.reports import plan_report, summary_json
    from trady.planner.tracing import trace

    known = None if priorities is None else Priorities.load(priorities)
    ratios = read_scheme(scheme)
    model_kwargs, plan_kwargs = _split(options)
    with stages() as say:
        prepared, measure = _prepared(say, norm=plan_kwargs["norm"], **model_kwargs)
        loaded = prepared.loaded
        step = {name: plan_kwargs.pop(name) for name in ("norm", "dtype", "amp", "device", "memory_format")}
        say("Tracing one training step")
        traced = trace(
            loaded.model,
            prepared.inputs,
            loss=loaded.loss,
            head=model_kwargs["head"],
            train=plan_kwargs["train"],
            batch_sizes=None if batch_size == "max" else (batch_size,),
            **step,
        )
        choice = plan_kwargs | step | {"budget": budget, "loss": loaded.loss, "scheme": ratios, "progress": say}
        choice |= {"source": prepared.source, "priorities": known or measure, "traced": traced}
        if batch_size == "max":
            plan = plan_largest_batch(loaded.model, prepared.inputs, min_value=min_value or 0.0, **choice)
        else:
            plan = make_plan(loaded.model, prepared.inputs, batch_size=batch_size, **choice)
        _write_figures(plan, traced, plot, graph, draw)
        _write_page(plan, html)
    if output is not None:
        plan.save(output)
    if as_json:
        click.echo(json.dumps(summary_json(plan), indent=1))
    else:
        Console().print(plan_report(plan))
    tell_written(output, plot, html, graph, draw)


def _profile(
    *,
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
    from trady.planner.reports import priorities_report

    with stages() as say:
        prepared, measure = _prepared(say, **options)
        found = _synthetic(prepared, say) if measure is None else measure()
        counted = _count_macs(prepared) if macs else None
        if record is not None and recording is not None:
            _record(prepared, record, lr, options, say).save(recording)
    if output is not None:
        found.save(output)
    if as_json:
        click.echo(found.model_dump_json(indent=1))
    else:
        Console().print(priorities_report(found))
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


def _record(prepared: Any, epochs: int, lr: float, options: dict[str, Any], say: Callable[[str], None]) -> Any:
    from trady.planner.planning import record_from_data

    return record_from_data(
        prepared,
        epochs=epochs,
        learning_rate=lr,
        num_batches=options["calibration_batches"],
        batch_size=options["calibration_batch_size"],
        norm=options["norm"],
        seed=options["seed"],
        say=say,
    )


def _prepared(
    say: Callable[[str], None],
    *,
    model: str,
    data: str | None,
    classes: int | None,
    tokenizer: Path | None,
    head: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    calibration_batches: int,
    calibration_batch_size: int,
    seed: int,
    norm: str = "frozen",
    **loading: Any,
) -> tuple[Any, Callable[[], Any] | None]:
    """The model with its head and data, and a function that measures priorities where there is data to do it on."""
    from trady.planner.models import load_model
    from trady.planner.planning import prepare, priorities_from_data

    say(f"Loading {model}")
    loaded = load_model(model, **loading)
    for note in loaded.notes:
        click.echo(f"Note: {note}", err=True)
    prepared = prepare(loaded, data=data, classes=classes, tokenizer=tokenizer, head=head, mean=mean, std=std)
    if prepared.data is None:
        return prepared, None

    def measure() -> Any:
        found = priorities_from_data(
            prepared, num_batches=calibration_batches, batch_size=calibration_batch_size, norm=norm, seed=seed, say=say
        )
        _tell_skipped(prepared.data)
        return found

    return prepared, measure


def _synthetic(prepared: Any, say: Callable[[str], None]) -> Any:
    from trady.planner.priorities import priorities_without_data
    from trady.planner.tracing import trace

    say("Finding priorities without data")
    loaded = prepared.loaded
    traced = trace(loaded.model, prepared.inputs, loss=loaded.loss, head=prepared.asked_head)
    return priorities_without_data(
        loaded.model, prepared.inputs, traced, loaded.loss, has_weights=prepared.source.has_weights
    )


def _count_macs(prepared: Any) -> Any:
    from trady.planner.costs import forward_macs
    from trady.planner.reports import macs_report

    return macs_report(forward_macs(prepared.loaded.model, prepared.inputs))


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options about the model, and options about the plan."""
    names = {parameter.name for parameter in profile_command.params} - _ABOUT_PROFILE
    about_model = {name: value for name, value in options.items() if name in names}
    return about_model, {name: value for name, value in options.items() if name not in names} | {
        "head": options["head"]
    }


def _write_figures(plan: Any, traced: Any, plot: Path | None, graph: Path | None, draw: Path | None) -> None:
    if plot is None and graph is None and draw is None:
        return
    from trady.planner.reports import draw_graph, plot_plan, save_graph

    if plot is not None:
        plot_plan(plan, plot)
    if graph is not None:
        save_graph(traced, graph)
    if draw is not None:
        draw_graph(traced, draw)


def _write_page(plan: Any, html: Path | None) -> None:
    if html is not None:
        from trady.planner.reports import write_plan_page

        write_plan_page(plan, html)


def _check_figures(plot: Path | None, html: Path | None, graph: Path | None, draw: Path | None) -> None:
    from trady.planner.reports import check_figure_path, check_graph_path, check_page_path

    for figure in (plot, draw):
        if figure is not None:
            check_figure_path(figure)
    if html is not None:
        check_page_path(html)
    if graph is not None:
        check_graph_path(graph)


def _tell_skipped(data: Any) -> None:
    skipped = getattr(data, "skipped", ())
    if skipped:
        names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        click.echo(f"Note: {len(skipped)} unreadable items were skipped: {names}", err=True)
