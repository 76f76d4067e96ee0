"""Does it train as well as the paper says? Every policy on real weights and data, through the engine, at equal bytes.

    python -m benchmarks.accuracy --preset quick      # under 20 minutes on 2 cores
    python -m benchmarks.accuracy --preset desk       # what docs/accuracy.md was made from: hours on 2 cores
    python -m benchmarks.accuracy --preset paper      # the papers' whole grid and length, for a GPU or for days
    python -m benchmarks.accuracy times               # a step of each depth, one minute on a quiet machine
    python -m benchmarks.accuracy report              # tables, tests and figures into docs/

Runs go to ``benchmarks/results/accuracy.jsonl``, one line each, and none is made twice: an interrupted preset goes on.
Networks and data come from the asset folder (``TRADY_ASSETS``), data sets of torchvision and folders of CUB and VWW
from ``TRADY_DATASETS``; those that a machine lacks are left out.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.accuracy.rows import Row, RowsError, append_row, read_rows

RESULTS: Final = Path(__file__).resolve().parents[1] / "results" / "accuracy.jsonl"
TIMES: Final = RESULTS.with_name("accuracy-times.json")
#: Tensors of megabytes come and go in each step: glibc is to keep their memory instead of asking the system each time.
_KEEP_MEMORY: Final = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "67108864"}


@click.group(invoke_without_command=True)
@click.option("--preset", type=click.Choice(["quick", "desk", "paper"]), default="quick", show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="Processes, of one thread each.",
)
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Where rows go.",
)
@click.pass_context
def main(context: click.Context, preset: str, workers: int, results: Path) -> None:
    """Run a preset; example: python -m benchmarks.accuracy --preset quick."""
    context.obj = results
    if context.invoked_subcommand is None:
        run_preset(preset, workers, results)


@main.command()
@click.pass_obj
def report(results: Path) -> None:
    """Write docs/accuracy.md and its figures from the results."""
    from benchmarks.accuracy.report import write_report

    rows = _rows(results)
    if not any(not row["choosing"] for row in rows):
        raise click.ClickException(f"{results} holds no judged run. Make some: python -m benchmarks.accuracy")
    if not TIMES.exists():
        raise click.ClickException(f"{TIMES} is missing. Make it: python -m benchmarks.accuracy times")
    write_report(rows, json.loads(TIMES.read_text()))


@main.command()
@click.option("--rounds", default=15, show_default=True, help="Steps of each policy, in turn.")
def times(rounds: int) -> None:
    """Time a step of the policies whose depth the report compares, on a quiet machine."""
    from benchmarks.accuracy.grid import depth_cells
    from benchmarks.accuracy.runs import step_times

    TIMES.write_text(json.dumps({"rounds": rounds, "step_ms": step_times(depth_cells(), rounds)}, indent=1) + "\n")
    click.echo(TIMES.read_text())


def run_preset(preset: str, workers: int, results: Path) -> None:
    """Make the runs of a preset that are not there yet."""
    from benchmarks.accuracy.grid import PRESETS
    from benchmarks.accuracy.tasks import ASSETS, DATASETS, is_here

    wanted = {data for block in PRESETS[preset] for data in block.data}
    if missing := sorted(data for data in wanted if not is_here(data)):
        told = f"{', '.join(missing)}: neither in {ASSETS} nor in {DATASETS} (TRADY_ASSETS, TRADY_DATASETS)."
        if len(missing) == len(wanted):
            raise click.ClickException(f"No data of preset {preset!r} is here. {told} Set them to where the data lie.")
        click.echo(f"Left out, {told}", err=True)
    os.environ.update(_KEEP_MEMORY)  # read by the processes to come
    known = {row["key"]: row for row in _rows(results)}
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for block in PRESETS[preset]:
            judged = list(block.judged())
            rates = _chosen_rates(block, judged, known, pool, results)
            _make([replace(cell, rate=rate) for cell, rate in zip(judged, rates, strict=True)], known, pool, results)


def _rows(results: Path) -> list[Row]:
    try:
        return read_rows(results)
    except RowsError as error:
        raise click.ClickException(str(error)) from error


def _chosen_rates(block: Any, judged: Sequence[Any], known: dict[str, Row], pool: Any, results: Path) -> list[float]:
    """The learning rate of each judged run, by the loss on held-out training data."""
    from benchmarks.accuracy.grid import chosen_rate, rates_to_try

    if block.fixed_rate is not None:
        return [block.fixed_rate] * len(judged)
    losses: list[dict[float, float]] = [{} for _ in judged]
    while True:
        trying = [
            [block.choosing(cell, rate) for rate in rates_to_try(block.first_rates(cell.policy), found)]
            for cell, found in zip(judged, losses, strict=True)
        ]
        if not any(trying):
            return [chosen_rate(found) for found in losses]
        _make([cell for cells in trying for cell in cells], known, pool, results)
        for found, cells in zip(losses, trying, strict=True):
            found.update({cell.rate: known[cell.key]["loss"] for cell in cells})


def _make(cells: Sequence[Any], known: dict[str, Row], pool: Any, results: Path) -> None:
    from benchmarks.accuracy.runs import run

    missing = list({cell.key: cell for cell in cells if cell.key not in known}.values())
    for number, row in enumerate(pool.imap_unordered(run, missing), start=1):
        known[row["key"]] = row
        append_row(results, row)
        clock = time.strftime("%H:%M:%S")
        click.echo(
            f"{clock} {number}/{len(missing)} {'choosing ' if row['choosing'] else ''}{row['network']} {row['data']} "
            f"{row['policy']['name']}, rate {row['rate']}, seed {row['seed']}: {row['accuracy']:.2%}, "
            f"loss {row['loss']:.4f}, {row['measured_update_bytes']:,} B, {row['seconds']:.0f} s",
            err=True,
        )


if __name__ == "__main__":
    main()
