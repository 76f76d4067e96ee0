"""``trady-plan``: results on stdout, progress and notes on stderr."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from trady.planner.cli.model import model_options, take_model
from trady.planner.cli.options import options_of, taken
from trady.planner.models import StepOptions
from trady.planner.planning import ChoiceOptions
from trady.planner.units import parse_bytes

if TYPE_CHECKING:
    from trady.planner.plan import Plan
    from trady.planner.tracing import Trace


class _BatchSize(click.ParamType[int | Literal["max"]]):
    """A number of samples, or ``max``."""

    name = "SIZE|max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Literal["max"]:
        if value == "max":
            return "max"
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of samples above 0 nor max.", param, ctx)
        return int(value)


@click.command("trady-plan", context_settings=CONTEXT)
@click.argument("model")
@model_options
@options_of(StepOptions)
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
    _check_batch(options)
    with errors_told():
        parse_bytes(options["budget"])
        pictures = {name: options.pop(name) for name in ("plot", "html", "graph", "draw")}
        output = options.pop("output")
        check_outputs(output, *pictures.values())
        _check_figures(**pictures)
        as_json = options.pop("as_json")
        plan, traced = _plan(options)
        _write_figures(plan, traced, **pictures)
        if output is not None:
            plan.save(output)
        _show(plan, as_json)
        tell_written(output, *pictures.values())


def _check_batch(options: dict[str, Any]) -> None:
    if options["min_value"] is not None and options["batch_size"] != "max":
        raise click.UsageError("--min-value is for --batch-size max. Leave it out, or give both.")


def _plan(options: dict[str, Any]) -> "tuple[Plan, Trace]":
    """The plan that was asked for, and the trace it was made from."""
    from trady.planner.planning import make_plan, plan_largest_batch
    from trady.planner.priorities import Priorities
    from trady.planner.tracing import trace

    priorities, batch_size, min_value = (options.pop(name) for name in ("priorities", "batch_size", "min_value"))
    known = None if priorities is None else Priorities.load(priorities)
    options["scheme"] = read_scheme(options["scheme"])
    step, head = taken(StepOptions, options), options["head"]
    with stages() as say:
        prepared, _, measure = take_model(say, options.pop("model"), options, step.norm)
        loaded = prepared.loaded
        say("Tracing one training step")
        sizes = None if batch_size == "max" else (batch_size,)
        traced = trace(loaded.model, prepared.inputs, loss=loaded.loss, head=head, batch_sizes=sizes, **dict(step))
        choice = options | {"dtype": step.dtype, "loss": loaded.loss, "progress": say, "traced": traced}
        choice |= {"source": prepared.source, "priorities": known or measure}
        if batch_size == "max":
            return plan_largest_batch(loaded.model, prepared.inputs, min_value=min_value or 0.0, **choice), traced
        return make_plan(loaded.model, prepared.inputs, batch_size=batch_size, **choice), traced


def _show(plan: "Plan", as_json: bool) -> None:
    from trady.planner.reports import plan_report, summary_json

    if as_json:
        click.echo(json.dumps(summary_json(plan), indent=1))
    else:
        Console().print(plan_report(plan))


def _check_figures(plot: Path | None, html: Path | None, graph: Path | None, draw: Path | None) -> None:
    from trady.planner.reports import check_figure_path, check_graph_path, check_page_path

    checks = ((plot, check_figure_path), (draw, check_figure_path), (html, check_page_path), (graph, check_graph_path))
    for path, check in checks:
        if path is not None:
            check(path)


def _write_figures(
    plan: "Plan", traced: "Trace", plot: Path | None, html: Path | None, graph: Path | None, draw: Path | None
) -> None:
    from trady.planner.reports import draw_graph, plot_plan, save_graph, write_plan_page

    if plot is not None:
        plot_plan(plan, plot)
    if graph is not None:
        save_graph(traced, graph)
    if draw is not None:
        draw_graph(traced, draw)
    if html is not None:
        write_plan_page(plan, html)
