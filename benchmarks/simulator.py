"""How fast the simulator replays, how its cost grows, and what a 7B Llama takes.

    python -m benchmarks.simulator
    python -m benchmarks.simulator --markdown docs/simulator-speed.md      # the page, from the committed results

Every time is the median of several runs in this process, on all its processors, importing left out. The rival is the
replay as one writes it first: trial by trial, ``numpy.random.Generator.choice`` for every layer and epoch, the same
measures from numpy sets of channels. Writes ``benchmarks/results/simulator.json``.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torchvision

from trady.planner import Plan, make_plan, trace
from trady.planner.options import Strategy
from trady.planner.priorities import uniform_priorities
from trady.planner.reports import layer_rgn
from trady.simulator import simulate

RESULTS = Path(__file__).resolve().parent / "results" / "simulator.json"
POLICIES = [strategy.value for strategy in Strategy if strategy is not Strategy.SU]
LLAMA = """
import json, os, resource, sys, time
from trady.planner.plan import Plan
from trady.simulator import simulate
plan = Plan.load(sys.argv[1])
start = time.perf_counter()
report = simulate(plan, policy=sys.argv[2], trials=100, epochs=100)
seconds = time.perf_counter() - start
own = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
peak = 1024 * (int(own) + os.cpu_count() * worker)  # what workers share is counted again in each
print(json.dumps({"seconds": round(seconds, 2), "peak_bytes": peak, "channels": report.num_channels}))
"""


@click.command()
@click.option("--repeats", default=5, show_default=True, help="Runs of which the median counts.")
@click.option("--llama/--no-llama", default=True, help="The 7B Llama too; else its committed results are kept.")
@click.option("--only-llama", is_flag=True, help="Measure the Llama anew, and keep the other results.")
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Write the page from the committed results, and stop."
)
def main(repeats: int, llama: bool, only_llama: bool, markdown: Path | None) -> None:
    """Time replays; example: python -m benchmarks.simulator --repeats 3."""
    if markdown is not None:
        markdown.write_text(page(json.loads(RESULTS.read_text())))
        return
    if only_llama:
        RESULTS.write_text(json.dumps(json.loads(RESULTS.read_text()) | {"llama": llama_rows()}, indent=1) + "\n")
        return
    plan = mobilenet_plan("256KB")
    document = {
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} processors",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "repeats": repeats,
        "rival": against_rival(plan, repeats),
        "policies": {policy: replay_seconds(plan, 1, policy=policy, epochs=50) for policy in POLICIES},
        "trials": {number: replay_seconds(plan, repeats, trials=number) for number in (500, 1000, 2000, 4000)},
        "epochs": {number: replay_seconds(plan, repeats, epochs=number) for number in (50, 100, 200, 400)},
        "budgets": budgets(repeats),
        "llama": llama_rows() if llama else json.loads(RESULTS.read_text())["llama"],
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    click.echo(json.dumps(document, indent=1))


def mobilenet_plan(budget: str) -> Plan:
    """MobileNetV2 at 224 pixels, batch 1, uniform norms."""
    model, inputs = torchvision.models.mobilenet_v2(), torch.zeros(1, 3, 224, 224)
    traced = trace(model, inputs)
    return make_plan(model, inputs, budget=budget, traced=traced, priorities=uniform_priorities(traced))


def replay_seconds(plan: Plan, repeats: int, *, trials: int = 1000, epochs: int = 100, policy: str = "solver") -> float:
    """Median of some replays."""
    return median_seconds(lambda: simulate(plan, policy=policy, trials=trials, epochs=epochs), repeats)


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median time of a call."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return round(statistics.median(found), 3)


def against_rival(plan: Plan, repeats: int) -> dict[str, float]:
    """Both on the same plan in turn, and the paper's own rule; the rival runs fewer trials, each costs the same."""
    ours, fillings, rivals = [], [], []
    for _ in range(repeats):
        ours.append(replay_seconds(plan, 1) / 1000)
        fillings.append(replay_seconds(plan, 1, policy="trady"))
        rivals.append(median_seconds(lambda: naive_replay(plan, trials=5, epochs=100), 1) / 5)
    mine, rival = statistics.median(ours), statistics.median(rivals)
    return {
        "ours_seconds_1000_trials_100_epochs": round(1000 * mine, 3),
        "trady_seconds_1000_trials_100_epochs": round(statistics.median(fillings), 3),
        "rival_seconds_1000_trials_100_epochs": round(1000 * rival, 1),
        "ratio": round(rival / mine, 1),
    }


def naive_replay(plan: Plan, trials: int, epochs: int) -> dict[str, np.ndarray]:
    """The replay as one writes it first."""
    layers = [(index, count) for index, count in enumerate(plan.counts) if count]
    norms = {index: np.square(plan.channel_norms(index)) for index, _ in layers}
    total = sum(np.square(plan.channel_norms(index)).sum() for index in range(len(plan.counts)))
    rgn = layer_rgn(plan)
    found = {name: np.zeros((trials, epochs)) for name in ("reached", "rgn", "captured", "cosine", "waited")}
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        times = {index: np.zeros(plan.table.layers[index].in_channels) for index, _ in layers}
        last = {index: np.full(plan.table.layers[index].in_channels, -1) for index, _ in layers}
        for epoch in range(epochs):
            captured, waits = 0.0, []
            for index, count in layers:
                drawn = rng.choice(len(times[index]), count, replace=False)
                before = last[index][drawn]
                waits += (epoch - before[before >= 0]).tolist()
                last[index][drawn] = epoch
                times[index][drawn] += 1
                captured += norms[index][drawn].sum()
            aligned = sum((times[index] * norms[index]).sum() for index, _ in layers)
            square = sum((times[index] ** 2 * norms[index]).sum() for index, _ in layers)
            found["captured"][trial, epoch] = captured / total
            found["cosine"][trial, epoch] = aligned / np.sqrt(square * total)
            found["waited"][trial, epoch] = np.mean(waits) if waits else np.nan
            found["reached"][trial, epoch] = sum((times[index] > 0).sum() for index, _ in layers)
            found["rgn"][trial, epoch] = sum((times[index] > 0).mean() * rgn[index] for index, _ in layers)
    return found


def budgets(repeats: int) -> list[dict[str, float | str]]:
    """More bytes, more channels drawn in an epoch."""
    rows: list[dict[str, float | str]] = []
    for budget in ("128KB", "256KB", "512KB", "1MB", "2MB"):
        plan = mobilenet_plan(budget)
        rows.append({"budget": budget, "drawn_channels": sum(plan.counts), "seconds": replay_seconds(plan, repeats)})
    return rows


def llama_rows() -> list[dict[str, Any]]:
    """100 trials of 100 epochs of a 7B Llama, each in a process of its own; peaks are of it and its workers."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, use_cache=False
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM._from_config(config)
    inputs = {name: torch.zeros(1, 128, dtype=torch.int64) for name in ("input_ids", "labels")}
    traced = trace(model, inputs)
    rows = []
    for budget in ("64MB", "1GB"):
        plan = make_plan(model, inputs, budget=budget, traced=traced, priorities=uniform_priorities(traced))
        with tempfile.TemporaryDirectory() as folder:
            plan.save(path := Path(folder) / "plan.json")
            done = subprocess.run(
                [sys.executable, "-c", LLAMA, path, "solver"], capture_output=True, text=True, check=True
            )
        rows.append({"budget": budget, "drawn_channels": sum(plan.counts), **json.loads(done.stdout)})
    return rows


def page(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    rival = document["rival"]
    lines = [
        "# How fast the simulator is",
        "",
        f"Made by `python -m benchmarks.simulator` ({document['machine']}, numpy {document['numpy']}; medians of "
        f"{document['repeats']} runs). MobileNetV2 at 256 KB unless said otherwise.",
        "",
        "| 1,000 trials of 100 epochs | seconds |",
        "| --- | --: |",
        f"| `solver`: the plan's counts in every epoch | **{rival['ours_seconds_1000_trials_100_epochs']:.2f}** |",
        f"| `trady`: the budget filled anew each epoch | **{rival['trady_seconds_1000_trials_100_epochs']:.2f}** |",
        f"| the rival on the solver's plan | {rival['rival_seconds_1000_trials_100_epochs']:.0f} |",
        "",
        "The rival is the replay as one writes it first, trial by trial with numpy's `Generator.choice`: it takes "
        f"**{rival['ratio']:.0f} times** as long.",
        "",
        "| policy | seconds for 1,000 trials of 50 epochs |",
        "| --- | --: |",
        *(f"| `{policy}` | {elapsed:.2f} |" for policy, elapsed in document["policies"].items()),
        "",
        "The cost grows in proportion to trials, epochs and drawn channels:",
        "",
        "| 100 epochs, trials | seconds | 1,000 trials, epochs | seconds |",
        "| --: | --: | --: | --: |",
        *(
            f"| {trials} | {first:.2f} | {epochs} | {second:.2f} |"
            for (trials, first), (epochs, second) in zip(
                document["trials"].items(), document["epochs"].items(), strict=True
            )
        ),
        "",
        "| budget | channels drawn in an epoch | seconds for 1,000 trials of 100 epochs |",
        "| --- | --: | --: |",
        *(f"| {row['budget']} | {row['drawn_channels']:,} | {row['seconds']:.2f} |" for row in document["budgets"]),
    ]
    if document["llama"]:
        lines += [
            "",
            f"A 7-billion-parameter Llama ({document['llama'][0]['channels']:,} channels), 100 trials of 100 epochs; "
            "the peak is resident memory of the command and its workers together:",
            "",
            "| budget | channels drawn in an epoch | seconds | peak |",
            "| --- | --: | --: | --: |",
            *(_llama_line(row) for row in document["llama"]),
        ]
    return "\n".join(lines) + "\n"


def _llama_line(row: dict[str, Any]) -> str:
    return f"| {row['budget']} | {row['drawn_channels']:,} | {row['seconds']:.1f} | {row['peak_bytes'] / 1e9:.2f} GB |"


if __name__ == "__main__":
    main()
