"""How long a user waits for a plan, against importing torch and torchvision alone.

    python -m benchmarks.startup

Runs both commands in turn and compares medians. The bar: a plan of MobileNetV2 takes at most twice the import plus 3 s.
Writes ``benchmarks/results/startup.json``.
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

import click
import torch
import torchvision

RESULTS = Path(__file__).resolve().parent / "results" / "startup.json"


@click.command()
@click.option("--runs", default=5, show_default=True, help="Counted runs of each command, after one warm-up.")
def main(runs: int) -> None:
    """Time both commands in turn."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "mobilenet_v2.pt"
        torch.save(torchvision.models.mobilenet_v2(), model)
        commands = {
            "import": [sys.executable, "-c", "import torch, torchvision"],
            "plan": [str(Path(sys.executable).with_name("trady-plan")), "--budget", "256KB", str(model)],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(runs + 1):
            for name, command in commands.items():
                elapsed = _seconds(command)
                if run:
                    seconds[name].append(round(elapsed, 2))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    allowed = 2 * medians["import"] + 3
    content = {
        "command": f"python -m benchmarks.startup --runs {runs}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "seconds": seconds,
        "median_seconds": medians,
        "allowed_seconds": round(allowed, 2),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    click.echo(f"import {medians['import']:.2f} s, plan {medians['plan']:.2f} s, allowed {allowed:.2f} s")


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
