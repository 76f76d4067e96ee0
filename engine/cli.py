"""``trady-train`` and ``trady-verify``: results on stdout, progress and notes on stderr."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource
from rich.console import Console

from trady.engine.trainer import DataOptions, RunOptions, VerifyOptions
from trady.planner.cli import CONTEXT, errors_told, fields_of, options_of
from trady.planner.options import DType

if TYPE_CHECKING:
    from trady.planner.plan import Plan

#: What may stand beside --resume: everything else is in the run's folder.
_WITH_RESUME: Final = frozenset(("resume", "trust_pickle", "as_json"))


@click.command("trady-train", context_settings=CONTEXT)
@click.argument("plan", required=False, type=click.Path(path_type=Path))
@click.argument("model", required=False)
@click.option("--resume", metavar="RUN", type=click.Path(path_type=Path), help="Go on with the run in this folder.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the run; made anew.")
@options_of(DataOptions)
@options_of(RunOptions)
@click.option("--trust-pickle", is_flag=True, help="Run the code a model file names: your own only.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def train_command(
    context: click.Context,
    /,
    resume: Path | None,
    output: Path | None,
    as_json: bool,
    trust_pickle: bool,
    **options: Any,
) -> None:
    """Train MODEL as planned in PLAN, inside its bytes.

    MODEL is what trady-plan takes; the plan's own source by default. A run can be stopped and resumed at any moment
    and ends with the same weights. Several processes: torchrun --nproc-per-node 2 -m trady.engine.cli ...

    Example: trady-train plan.json model.pt --data photos/ --epochs 50 --lr 0.05 -o runs/a
    """
    options["draw_every"] = _draw_every(options["draw_every"])
    if resume is not None:
        _refuse_others(context)
    else:
        _require(context, plan=options["plan"], data=options["data"], output=output)
    run = resume or output
    with errors_told("Interrupted." + (f" Go on with: trady-train --resume {run}" if run else "")):
        _train(resume, output, as_json, trust_pickle, options)


@click.command("trady-verify", context_settings=CONTEXT)
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model", required=False)
@options_of(VerifyOptions)
@click.option("--json", "as_json", is_flag=True, help="Print the measurement as JSON.")
def verify_command(plan: Path, model: str | None, as_json: bool, **options: Any) -> None:
    """Run one real step of PLAN on MODEL: planned bytes beside measured ones, line by line.

    Exits with 1 if a line, the peak or the budget is exceeded. The model is not changed.

    Example: trady-verify plan.json model.pt
    """
    with errors_told("Interrupted."):
        from trady.engine.trainer import verify
        from trady.planner.sampling import load_plan

        measurement = verify(load_plan(plan), model, VerifyOptions(**fields_of(VerifyOptions, options)))
        if as_json:
            click.echo(json.dumps(measurement.as_json(), indent=1))
        else:
            Console().print(measurement, highlight=False)
        sys.exit(1 if measurement.exceeded else 0)


def _train(resume: Path | None, output: Path | None, as_json: bool, trust_pickle: bool, given: dict[str, Any]) -> None:
    from trady.engine.trainer import (
        PLAN_FILE,
        interruption_text,
        joined_processes,
        shown_progress,
        silent_display,
        train,
        training_json,
        training_report,
    )
    from trady.planner.sampling import load_plan

    folder = resume or output
    assert folder is not None
    if resume is not None:
        options, plan = RunOptions.load(folder), load_plan(folder / PLAN_FILE)
    else:
        plan = load_plan(given["plan"])
        options = _new_options(plan, given)
    with joined_processes(options.device) as processes, shown_progress(Console(stderr=True)) as shown:
        report = train(
            plan,
            options,
            folder,
            resume=resume is not None,
            trust_pickle=trust_pickle,
            processes=processes,
            display=shown if processes.is_first else silent_display(),
        )
        is_first = processes.is_first
    if report.interrupted_by is not None:
        if is_first:
            click.echo(interruption_text(report), err=True)
        sys.exit(128 + report.interrupted_by)
    if is_first and as_json:
        click.echo(json.dumps(training_json(report), indent=1))
    elif is_first:
        Console().print(training_report(report), highlight=False)


def _new_options(plan: "Plan", given: dict[str, Any]) -> RunOptions:
    """Options of a new run, with paths that hold from wherever it is resumed."""
    from trady.engine.trainer import options_for

    data = fields_of(DataOptions, given)
    for name in ("source", "validation_source", "tokenizer", "root"):
        data[name] = data[name] and _absolute(data[name])
    fields = fields_of(RunOptions, given)
    fields |= {"data": DataOptions(**data), "processes": int(os.environ.get("WORLD_SIZE", "1"))}
    fields["model"] = fields["model"] and _absolute(fields["model"])
    amp = fields.pop("amp")
    if amp is not None:
        fields["amp"] = None if amp == "none" else DType(amp)
    return options_for(plan, fields)


def _draw_every(when: str) -> str | int:
    """``epoch``, ``never``, or a number of steps.

    Raises:
        UsageError: It is none of them.
    """
    if when in ("epoch", "never"):
        return when
    if not when.isdecimal() or int(when) < 1:
        raise click.UsageError(
            f"--draw-every {when!r} is neither epoch, nor never, nor a number of steps of 1 or more."
        )
    return int(when)


def _absolute(source: str | Path) -> str:
    """A path that exists, from the root; anything else as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


def _refuse_others(context: click.Context) -> None:
    """A run that is resumed keeps its options.

    Raises:
        UsageError: Other options were given.
    """
    others = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in _WITH_RESUME
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if others:
        raise click.UsageError(f"--resume takes plan, model and options from the run; leave out {', '.join(others)}.")


def _require(context: click.Context, **values: Any) -> None:
    names = {"plan": "PLAN", "data": "--data", "output": "-o"}
    missing = [names[name] for name, value in values.items() if value is None]
    if missing:
        raise click.UsageError(f"Missing {', '.join(missing)}. Give them, or --resume RUN.", context)


if __name__ == "__main__":
    train_command()
