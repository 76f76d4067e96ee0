"""``trady-study``: many settings planned at once; results on stdout, progress and notes on stderr."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trady.planner.cli.messages import CONTEXT, errors_told, tell_written
from trady.planner.cli.options import options_of, taken
from trady.planner.errors import StudyError
from trady.planner.models import StepOptions
from trady.planner.options import DEFAULT_OPTIMIZER
from trady.planner.planning import (
    CalibrationOptions,
    ChoiceOptions,
    LoadingOptions,
    PreparationOptions,
)

if TYPE_CHECKING:
    from trady.planner.studies import Axes, Listener, ModelSpec, Study

_INTERRUPTED: Final = "Interrupted. The rows found so far are kept: the same command goes on where it was."


@click.command("trady-study", context_settings=CONTEXT)
@click.argument("models", nargs=-1, required=True)
@options_of(LoadingOptions, leave_out=("input_shape",))
@options_of(PreparationOptions)
@options_of(CalibrationOptions)
@options_of(ChoiceOptions, leave_out=("budget_bytes", "optimizer", "strategy", "inclusion", "scheme"))
@click.option("--budgets", metavar="SIZES", help="32KB:4MB:24 (equal ratios), 64KB,256KB, or both.  [default: 24]")
@click.option("--target-coverage", type=float, metavar="SHARE", help="Instead: the smallest budget that reaches it.")
@click.option("--batch-sizes", default="1", metavar="SIZES", help="1,8,32 or 1:64:7.")
@click.option("--optimizers", default=DEFAULT_OPTIMIZER.value, metavar="NAMES", help="sinkgd,sgd,momentum,adam,adamw.")
@click.option("--dtypes", metavar="NAMES", help="float32,bfloat16,float16,int8.  [default: the model's own]")
@click.option("--norms", default="frozen", metavar="NAMES", help="frozen,train.")
@click.option("--inputs", metavar="SHAPES", help="3x96x96,3x224x224; several inputs each: a,b;c,d.  [default: its own]")
@options_of(StepOptions, only=("amp", "device", "memory_format", "train"))
@click.option("--priorities", multiple=True, type=click.Path(path_type=Path), help="Of trady-profile, one a model.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("study"), help="Folder to write."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one for each processor]")
@click.option("--ray", is_flag=False, flag_value="", metavar="[ADDRESS]", help="Solve on a Ray cluster.")
@click.option("--yes", "confirmed", is_flag=True, help="Plan more than 100,000 rows.")
@click.option("--json", "as_json", is_flag=True, help="Print all rows as JSON instead of the summary.")
def study_command(
    models: tuple[str, ...], output: Path, target_coverage: float | None, confirmed: bool, as_json: bool, **options: Any
) -> None:
    """Plan every combination of budgets, batch sizes, optimizers, types and input sizes for MODELS, and compare.

    One trace answers a whole column. Rows stream to the folder as JSON lines: an interrupted study goes on with the
    same command. At its end the folder holds rows.jsonl, rows.csv, rows.parquet, study.html and figures.

    Example: trady-study torchvision:mobilenet_v2 --budgets 32KB:4MB:24 --batch-sizes 1,8,32 --optimizers sinkgd,adamw
    """
    # PyTorch's profiler warns of memory that was there before a kernel was measured; it is not imported yet.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with errors_told(_INTERRUPTED):
        from trady.planner.studies import Common, check_extras, run_study, write_views

        axes, common = _axes(options), Common.read(options)
        axes.check_size(len(models), confirmed)
        specs = _specs(models, options)
        missing = check_extras()
        with _progress(0 if target_coverage is not None else axes.num_rows(len(models))) as listener:
            study = run_study(
                specs,
                axes,
                common,
                target=target_coverage,
                output=output,
                workers=options["workers"],
                ray=options["ray"],
                listener=listener,
            )
            listener.say("Drawing")
            written = write_views(study, output, missing)
        _tell(study, as_json)
        for note in missing.values():
            click.echo(f"Note: {note}", err=True)
        tell_written(*written)
    if study.failures:
        sys.exit(1)


def _tell(study: "Study", as_json: bool) -> None:
    from trady.planner.studies import study_report

    for failure in study.failures:
        click.echo(f"Error: {failure}", err=True)
    if as_json:
        click.echo(json.dumps([row.model_dump(mode="json") for row in study.rows], indent=1))
    elif study.rows:
        Console().print(study_report(study))


def _axes(options: dict[str, Any]) -> "Axes":
    from trady.planner.studies import Axes

    return Axes.read(
        {
            "inputs": _shapes(options["inputs"]),
            "norms": _names(options["norms"]),
            "dtypes": _names(options["dtypes"]) or (None,),
            "batch_sizes": options["batch_sizes"],
            "optimizers": _names(options["optimizers"]),
            "budgets": options["budgets"],
        }
    )


def _shapes(text: str | None) -> tuple[str, ...]:
    """Input sizes; those of models with several inputs hold commas and are told apart by semicolons."""
    if text is None:
        return ("",)
    return _names(text) if ";" not in text else tuple(part.strip() for part in text.split(";") if part.strip())


def _names(text: str | None) -> tuple[str, ...]:
    """The parts of a list with commas, each once, in their order."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip())) if text else ()


def _specs(models: tuple[str, ...], options: dict[str, Any]) -> list["ModelSpec"]:
    from trady.planner.priorities import Priorities
    from trady.planner.studies import ModelSpec

    files: tuple[Path, ...] = options["priorities"]
    if files and len(files) != len(models):
        raise StudyError(
            f"{len(files)} files of priorities for {len(models)} models. Give --priorities once for each, in order."
        )
    known = [Priorities.load(file) for file in files] if files else [None for _ in models]
    loading = {name: options[name] for name in ("arch", "loss", "trust_pickle", "pretrained", "meta")}
    preparing = {name: options[name] for name in ("data", "classes", "tokenizer", "mean", "std")}
    measuring = dict(taken(CalibrationOptions, options))
    return [
        ModelSpec(model, loading, preparing, priorities, measuring)
        for model, priorities in zip(models, known, strict=True)
    ]


@contextmanager
def _progress(total: int) -> Iterator["Listener"]:
    """What is being done and how many rows there are, on stderr; lines alone in a log."""
    from trady.planner import studies

    console = Console(stderr=True)
    if not console.is_terminal:
        yield studies.Listener(say=lambda text: click.echo(f"{text} ...", err=True))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Starting", total=total or None)
        yield studies.Listener(
            say=lambda text: progress.update(task, description=text),
            count=lambda number: progress.update(task, advance=number),
        )
