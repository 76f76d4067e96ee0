"""How long a study takes: one trace and all processors, against planning row by row.

    python -m benchmarks.study
    python -m benchmarks.study --markdown docs/study-speed.md      # the page, from the committed results

1,008 rows of MobileNetV2 (56 budgets from 32 kB to 4 MB, 3 batch sizes, 3 optimizers, float32 and int8), from the
module to the rows on disk, importing left out. The rival is what one writes first: ``make_plan`` for every row, here
given the trace, which it would otherwise make anew each time; it plans a sample of the rows, its cost is the same for
each. Once with gradient norms measured on synthetic pictures, once with uniform norms, whose ties are the hardest for
the solver. Medians. Writes ``benchmarks/results/study.json``.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import ortools
import torch
import torchvision

from benchmarks.commands import command
from trady.planner import Priorities, Study, calibrate, make_plan, study, trace
from trady.planner.priorities import synthetic_batches, uniform_priorities
from trady.planner.studies import StudyRow

RESULTS = Path(__file__).resolve().parent / "results" / "study.json"
GRID = {
    "budgets": "32KB:4MB:56",
    "batch_sizes": (1, 8, 32),
    "optimizers": ("sgd", "momentum", "adamw"),
    "dtypes": ("float32", "int8"),
}
COMMAND = "import sys; from trady.planner.cli.study import study_command; sys.argv[0] = 'trady-study'; study_command()"


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Runs of which the median counts.")
@click.option("--sample", default=16, show_default=True, help="Rows that the rival plans.")
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Write the page from the committed results, and stop."
)
def main(repeats: int, sample: int, markdown: Path | None) -> None:
    """Time studies; example: python -m benchmarks.study --repeats 3."""
    if markdown is not None:
        markdown.write_text(page(json.loads(RESULTS.read_text())))
        return
    model, inputs = torchvision.models.mobilenet_v2(), torch.zeros(2, 3, 224, 224)
    norms = {
        "measured": calibrate(model, synthetic_batches(model, inputs, 4), source="synthetic", origin="noise"),
        "uniform": uniform_priorities(trace(model, inputs), "asked for"),
    }
    document = {
        "command": command(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "torch": torch.__version__,
        "ortools": ortools.__version__,
        "repeats": repeats,
        "norms": {name: timed(model, inputs, found, repeats, sample) for name, found in norms.items()},
        "command_seconds": command_seconds(repeats),
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    click.echo(json.dumps(document, indent=1))


def timed(
    model: torch.nn.Module, inputs: torch.Tensor, priorities: Priorities, repeats: int, sample: int
) -> dict[str, Any]:
    """Study and rival in turn."""
    ours, rivals, proven = [], [], []
    rows: tuple[StudyRow, ...] = ()
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            found: Study = study((model, inputs), priorities=priorities, output=folder, **GRID)  # type: ignore[arg-type]
            ours.append(time.perf_counter() - start)
        rows = found.rows
        proven.append(sum(row.status == "optimal" for row in rows))
        step = max(1, len(rows) // sample)
        rivals.append(statistics.mean(row_by_row(model, inputs, priorities, rows[::step])) * len(rows))
    mine, rival = statistics.median(ours), statistics.median(rivals)
    return {
        "rows": len(rows),
        "proven_within_0.1_percent": min(proven),
        "ours_seconds": round(mine, 1),
        "rival_seconds": round(rival, 1),
        "ratio": round(rival / mine, 1),
    }


def row_by_row(
    model: torch.nn.Module, inputs: torch.Tensor, priorities: Priorities, rows: tuple[StudyRow, ...]
) -> list[float]:
    """Seconds of ``make_plan`` for some rows, the trace given."""
    traced, seconds = trace(model, inputs), []
    for row in rows:
        setting = row.setting
        start = time.perf_counter()
        make_plan(
            model,
            inputs,
            budget=setting.budget_bytes,
            batch_size=setting.batch_size,
            optimizer=setting.optimizer,
            dtype=setting.dtype,
            priorities=priorities,
            traced=traced,
        )
        seconds.append(time.perf_counter() - start)
    return seconds


def command_seconds(repeats: int) -> float:
    """The whole command with measured norms, from its start to its last file, page and figures included."""
    model, inputs = torchvision.models.mobilenet_v2(), torch.zeros(2, 3, 224, 224)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        priorities = Path(folder) / "priorities.json"
        calibrate(model, synthetic_batches(model, inputs, 4), source="synthetic", origin="noise").save(priorities)
        options = [f"--{name.replace('_', '-')}={_joined(value)}" for name, value in GRID.items()]
        for number in range(repeats):
            arguments = ["torchvision:mobilenet_v2", "--no-pretrained", f"--priorities={priorities}", *options]
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", COMMAND, *arguments, "-o", f"{folder}/{number}"], check=True, capture_output=True
            )
            found.append(time.perf_counter() - start)
    return round(statistics.median(found), 1)


def _joined(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(map(str, value))


def page(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    measured, uniform = document["norms"]["measured"], document["norms"]["uniform"]
    lines = [
        "# How fast a study is",
        "",
        f"Made by `python -m benchmarks.study` ({document['machine']}, torch {document['torch']}, ortools "
        f"{document['ortools']}; medians of {document['repeats']} runs). {measured['rows']:,} rows of MobileNetV2: 56 "
        "budgets from 32 kB to 4 MB, batch sizes 1, 8 and 32, SGD, momentum and AdamW, float32 and int8. One trace.",
        "",
        "| gradient norms | study, from module to rows on disk | `make_plan` row by row, the trace given | ratio |",
        "| --- | --: | --: | --: |",
        *(
            f"| {name} | **{found['ours_seconds']:.1f} s** | {found['rival_seconds']:.0f} s | {found['ratio']:.1f} |"
            for name, found in (("measured", measured), ("uniform, whose ties are the hardest", uniform))
        ),
        "",
        f"Proven within 0.1 % of the best: {measured['proven_within_0.1_percent']:,} and "
        f"{uniform['proven_within_0.1_percent']:,} rows.",
        "",
        "The whole command `trady-study torchvision:mobilenet_v2 --priorities ... --budgets 32KB:4MB:56 ...`, measured "
        f"norms, from its start to the last file, page and figures included: {document['command_seconds']:.1f} s.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
