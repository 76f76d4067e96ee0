"""``trady-train`` and ``trady-verify``: results on stdout, progress and notes on stderr."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource
from rich.console import Console

from trady.planner.cli import CONTEXT, errors_told
from trady.planner.options import DType, OptimizerKind

_AMP: Final = [DType.BFLOAT16.value, DType.FLOAT16.value, "none"]
#: What may stand beside --resume: everything else is in the run's folder.
_WITH_RESUME: Final = frozenset(("resume", "trust_pickle", "as_json"))


class _DrawEvery(click.ParamType[Any]):
    """``epoch``, ``never``, or a number of steps."""

    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        """Read a text or a number."""
        if value in ("epoch", "never"):
            return str(value)
        try:
            steps = int(value)
        except ValueError:
            steps = 0
        if steps < 1:
            self.fail(f"{value!r} is neither epoch, nor never, nor a number of steps of 1 or more.", param, ctx)
        return steps


@click.command("trady-train", context_settings=CONTEXT)
@click.argument("plan", required=False, type=click.Path(path_type=Path))
@click.argument("model", required=False)
@click.option("--resume", metavar="RUN", type=click.Path(path_type=Path), help="Go on with the run in this folder.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the run; made anew.")
@click.option("--data", metavar="SOURCE", help="Class folders, .npz, .csv/.tsv, torchvision:NAME, module:function.")
@click.option("--validation-data", metavar="SOURCE", help="Other data to evaluate on.")
@click.option(
    "--validation-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    help="Held out of data without a validation or test part.",
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json for text data.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where torchvision's data lies.  [default: data]")
@click.option("--download", is_flag=True, help="Fetch torchvision's data where it is missing.")
@click.option("--augment/--no-augment", default=True, help="Random crops and mirrors of pictures.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that decode.")
@click.option("--batches-per-epoch", type=click.IntRange(min=1), help="At the most; all by default.")
@click.option("--arch", metavar="FACTORY", help="Factory of a state dict; the plan's by default.")
@click.option("--loss", metavar="MODULE:FUNCTION", help="loss(outputs, targets); the plan's by default.")
@click.option("--trust-pickle", is_flag=True, help="Run the code a model file names: your own only.")
@click.option("--fit-head", is_flag=True, help="Fit the new head to the frozen model's features first.")
@click.option("--epochs", type=click.IntRange(min=1), help="The plan's by default.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Of a micro-batch of one process; the plan's.")
@click.option("--accumulate", type=click.IntRange(min=1), default=1, help="Micro-batches of a step.")
@click.option("--optimizer", type=click.Choice([kind.value for kind in OptimizerKind]), help="The plan's by default.")
@click.option(
    "--lr",
    "learning_rate",
    type=float,
    help="Peak rate.  [default: sinkgd and adam 0.001, sgd 0.125, momentum 0.0125]",
)
@click.option("--momentum", type=float, default=0.9, help="Of the optimizer momentum; the others have none.")
@click.option("--weight-decay", type=float, default=0.0, help="Of all that trains.")
@click.option("--warmup-epochs", type=float, help="Then a cosine to 0.  [default: 5, or a tenth of a shorter run]")
@click.option("--label-smoothing", type=float, default=0.0, help="Of cross-entropy.")
@click.option("--clip", type=float, metavar="NORM", help="Clip the norm of all gradients; not under sinkgd.")
@click.option("--amp", type=click.Choice(_AMP), help="Autocast; the plan's by default.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="The plan's by default.")
@click.option("--compile", "compile_", is_flag=True, help="Run through torch.compile: bytes are then the compiler's.")
@click.option("--draw-every", type=_DrawEvery(), default="epoch", help="epoch, never, or a number of steps.")
@click.option("--carry", is_flag=True, help="Keep Adam's state of channels that leave, for their return.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of draws, order, augmentation, dropout.")
@click.option("--strict", is_flag=True, help="Refuse batches larger than planned.")
@click.option("--tensorboard/--no-tensorboard", default=True, help="Write for TensorBoard where it is installed.")
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
    and ends with the same weights. Several processes: torchrun --nproc-per-node 2 -m trady.engine.trainer.training ...

    Example: trady-train plan.json model.pt --data photos/ --epochs 50 --lr 0.05 -o runs/a
    """
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
@click.option("--data", metavar="SOURCE", help="Labelled data for the batch; made up by default.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json for text data.")
@click.option("--arch", metavar="FACTORY", help="Factory of a state dict; the plan's by default.")
@click.option("--loss", metavar="MODULE:FUNCTION", help="loss(outputs, targets); the plan's by default.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="The plan's by default.")
@click.option("--trust-pickle", is_flag=True, help="Run the code a model file names: your own only.")
@click.option("--epoch", type=click.IntRange(min=0), default=0, help="Measure the draw of this epoch.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the draws.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurement as JSON.")
def verify_command(plan: Path, model: str | None, as_json: bool, **options: Any) -> None:
    """Run one real step of PLAN on MODEL: planned bytes beside measured ones, line by line.

    Exits with 1 if a line, the peak or the budget is exceeded. The model is not changed.

    Example: trady-verify plan.json model.pt
    """
    with errors_told("Interrupted."):
        from trady.engine.trainer import verify
        from trady.planner.sampling import load_plan

        measurement = verify(load_plan(plan), model, **options)
        if as_json:
            click.echo(json.dumps(measurement.as_json(), indent=1))
        else:
            Console().print(measurement, highlight=False)
        sys.exit(1 if measurement.exceeded else 0)


def _train(resume: Path | None, output: Path | None, as_json: bool, trust_pickle: bool, given: dict[str, Any]) -> None:
    from trady.engine.trainer import (
        PLAN_FILE,
        RunOptions,
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


def _new_options(plan: Any, given: dict[str, Any]) -> Any:
    """Options of a new run, with paths that hold from wherever it is resumed."""
    from trady.engine.trainer import DataOptions, options_for

    data = DataOptions(
        source=_absolute(given["data"]),
        validation_source=given["validation_data"] and _absolute(given["validation_data"]),
        validation_fraction=given["validation_fraction"],
        tokenizer=given["tokenizer"] and _absolute(given["tokenizer"]),
        root=given["data_root"] and _absolute(given["data_root"]),
        download=given["download"],
        augment=given["augment"],
        workers=given["workers"],
        batches_per_epoch=given["batches_per_epoch"],
    )
    taken = (
        "arch", "loss", "fit_head", "epochs", "batch_size", "accumulate", "optimizer", "learning_rate", "momentum",
        "weight_decay", "warmup_epochs", "label_smoothing", "clip", "device", "draw_every", "carry", "seed", "strict",
        "tensorboard",
    )  # fmt: skip
    fields = {name: given[name] for name in taken}
    fields |= {"data": data, "compile": given["compile_"], "processes": int(os.environ.get("WORLD_SIZE", "1"))}
    fields["model"] = given["model"] and _absolute(given["model"])
    if given["amp"] is not None:
        fields["amp"] = None if given["amp"] == "none" else DType(given["amp"])
    return options_for(plan, fields)


def _absolute(source: str | Path) -> str:
    """A path that exists, from the root; anything else as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


def _refuse_others(context: click.Context) -> None:
    """A run that is resumed keeps its options."""
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
