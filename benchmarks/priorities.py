"""How far to trust priorities: do layer ranks agree between synthetic and real inputs, and between tasks?

    python -m benchmarks.priorities            # about 10 minutes on 2 cores; needs the asset folder

Spearman's correlation of the layers' RGN. Writes ``benchmarks/results/priorities.json`` and ``docs/priorities.md``.
"""

import contextlib
import itertools
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from scipy.stats import spearmanr

from trady.planner.models import load_model
from trady.planner.planning import prepare, priorities_from_data
from trady.planner.priorities import Priorities, PrioritySource, calibrate, synthetic_batches

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(os.environ.get("TRADY_ASSETS", ROOT.parent / "shared" / "assets")).resolve()
RESULTS = ROOT / "benchmarks" / "results" / "priorities.json"
PAGE = ROOT / "docs" / "priorities.md"
PICTURES = ("food10.npz", "catdog.npz", "cifar10_sub.npz")
TEXTS = ("trec6.tsv", "sst2_sentences.tsv")
#: Factory in ``examples/``, mean and deviation of its pictures, tasks.
NETWORKS = {
    "mbv2-w0.35": ("paper_networks:mbv2_w035", 0.5, 0.5, PICTURES),
    "mcunet-5fps": ("paper_networks:mcunet_5fps", 0.5, 0.5, PICTURES),
    "proxyless-w0.3": ("paper_networks:proxyless_w03", 0.5, 0.5, PICTURES),
    "efficientnet-lite0": ("paper_networks:efficientnet_lite0", 127 / 255, 128 / 255, PICTURES),
    "minilm-l6-h384": ("paper_networks:minilm_classifier", None, None, TEXTS),
}


@dataclass(frozen=True)
class Row:
    """Agreement of two calibrations of one network."""

    network: str
    first: str
    second: str
    layers: int
    spearman: float
    top_overlap: float


@click.command()
@click.option("--batches", default=16, show_default=True, help="Batches of 16 per calibration.")
@click.option("--seeds", default=3, show_default=True, help="Calibrations per task; every pair of tasks is averaged.")
def main(batches: int, seeds: int) -> None:
    """Measure every network and write the table."""
    rows: list[Row] = []
    tails: dict[str, dict[str, float | None]] = {}
    for network, (factory, mean, std, tasks) in NETWORKS.items():
        measured = {
            task: [_on_data(factory, mean, std, task, batches, seed) for seed in range(seeds)] for task in tasks
        }
        measured["synthetic"] = [_on_noise(factory, len(tasks), batches, seed) for seed in range(seeds)]
        tails[network] = {name: found[0].tail_index for name, found in measured.items()}
        names = list(measured)
        rows += [_same(network, name, measured[name]) for name in names]
        rows += [
            _pair(network, first, second, measured[first], measured[second])
            for first, second in itertools.combinations(names, 2)
        ]
        for row in rows:
            if row.network == network:
                click.echo(f"{row.network:20} {row.first:20} {row.second:20} {row.spearman:.3f} {row.top_overlap:.2f}")
    content: dict[str, object] = {
        "command": f"python -m benchmarks.priorities --batches {batches} --seeds {seeds}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "rows": [asdict(row) for row in rows],
        "tail_index": tails,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    PAGE.write_text(_page(content, rows))


def _on_data(factory: str, mean: float | None, std: float | None, task: str, batches: int, seed: int) -> Priorities:
    with contextlib.chdir(ROOT / "examples"):
        loaded = load_model(factory)
    prepared = prepare(
        loaded,
        data=str(ASSETS / "data" / task),
        tokenizer=ASSETS / "weights" / "minilm-l6-h384.tokenizer.json" if mean is None else None,
        mean=None if mean is None else (mean,) * 3,
        std=None if std is None else (std,) * 3,
    )
    return priorities_from_data(prepared, num_batches=batches, batch_size=16, seed=seed)


def _on_noise(factory: str, _: int, batches: int, seed: int) -> Priorities:
    """The model's own head, noise for pictures, random targets: what ``trady-plan`` does without data."""
    with contextlib.chdir(ROOT / "examples"):
        loaded = load_model(factory)
    inputs = synthetic_batches(loaded.model, loaded.inputs, batches, seed=seed)
    return calibrate(loaded.model, inputs, source=PrioritySource.SYNTHETIC, origin="noise", seed=seed)


def _same(network: str, name: str, found: list[Priorities]) -> Row:
    """Agreement between seeds of one task: what the others can at best reach."""
    pairs = list(itertools.combinations(found, 2)) or [(found[0], found[0])]
    return _averaged(network, name, f"{name}, another seed", pairs)


def _pair(network: str, first: str, second: str, left: list[Priorities], right: list[Priorities]) -> Row:
    return _averaged(network, first, second, list(itertools.product(left, right)))


def _averaged(network: str, first: str, second: str, pairs: list[tuple[Priorities, Priorities]]) -> Row:
    correlations = [float(spearmanr(_rgn(left), _rgn(right)).statistic) for left, right in pairs]
    overlaps = [_overlap(left, right) for left, right in pairs]
    count = len(pairs)
    layers = len(pairs[0][0].layers)
    return Row(network, first, second, layers, round(sum(correlations) / count, 4), round(sum(overlaps) / count, 4))


def _rgn(priorities: Priorities) -> list[float]:
    return [layer.rgn for layer in priorities.layers]


def _overlap(left: Priorities, right: Priorities) -> float:
    """Share of the top 97 % layers that both have."""
    first, second = ({layer.name for layer in found.top(0.97)} for found in (left, right))
    return len(first & second) / len(first | second)


def _page(content: dict[str, object], rows: list[Row]) -> str:
    lines = [
        "# How far to trust priorities",
        "",
        "Layer ranks by reweighted gradient norm (RGN), Spearman's correlation, mean over all pairs of seeds; and the",
        "share of the paper's top layers (97 % of the RGN) that both calibrations choose. Made by",
        "",
        f"    {content['command']}",
        "",
        f"on {content['machine']}, torch {content['torch']}; the numbers lie in `benchmarks/results/priorities.json`.",
        "",
        "| network | layers | between | and | Spearman | top layers shared |",
        "| --- | ---: | --- | --- | ---: | ---: |",
    ]
    lines += [
        f"| {row.network} | {row.layers} | {row.first} | {row.second} | {row.spearman:.3f} | {row.top_overlap:.0%} |"
        for row in rows
    ]
    lines += ["", "Tail index alpha of the stochastic gradients (2 for Gaussian), first seed:", ""]
    for network, found in content["tail_index"].items():  # type: ignore[attr-defined]
        told = ", ".join(f"{name} {alpha:.2f}" for name, alpha in found.items() if alpha is not None)
        lines.append(f"* {network}: {told}")
    lines += ["", *_reading(rows)]
    return "\n".join(lines) + "\n"


def _reading(rows: list[Row]) -> list[str]:
    """The table in three sentences."""
    synthetic = [row.spearman for row in rows if row.second == "synthetic"]
    tasks = [row.spearman for row in rows if row.second != "synthetic" and "another seed" not in row.second]
    seeds = [row.spearman for row in rows if "another seed" in row.second and row.first != "synthetic"]
    return [
        f"Another seed of the same task agrees at {min(seeds):.2f} to {max(seeds):.2f}, another task at "
        f"{min(tasks):.2f} to {max(tasks):.2f}, synthetic inputs with real ones at {min(synthetic):.2f} to "
        f"{max(synthetic):.2f}.",
        "",
        "So: the ranks are the network's more than the task's. Priorities carry over from another task, and synthetic",
        "inputs come close; your own data is still the surest, and bytes depend on none of it.",
    ]


if __name__ == "__main__":
    main()
