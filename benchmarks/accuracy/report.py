"""``docs/accuracy.md``: tables, paired tests and figures from the runs of the accuracy benchmark."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.accuracy.figures import draw_budgets, draw_depth, draw_policies
from benchmarks.accuracy.grid import DEPTHS
from benchmarks.accuracy.rows import Row, is_smallest, latest, scores_by_policy
from benchmarks.accuracy.statistics import Paired, mean_of, paired

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "accuracy.md"
PROSE: Final = Path(__file__).with_name("prose.md")
ANSWERS: Final = Path(__file__).with_name("answers.md")
PRIORITIES: Final = ROOT / "benchmarks" / "results" / "priorities.json"

#: Networks whose tables stand in the page, and what reads pictures.
_VISION: Final = ("mbv2-w0.35", "mcunet-5fps", "proxyless-w0.3")
_TEXT: Final = "minilm-l6"
#: Pairs of policies that the page compares: on pictures, and on texts.
_COMPARED: Final = (
    ("solver SinkGD", "trady"),
    ("solver SinkGD", "medyate"),
    ("solver SinkGD", "solver"),
    ("solver SinkGD", "solver AdamW"),
    ("solver SinkGD", "trady SinkGD"),
    ("trady SinkGD", "trady"),
    ("medyate SinkGD", "medyate"),
    ("solver SinkGD", "medyate SinkGD"),
    ("solver", "trady"),
    ("solver E=16", "trady"),
    ("solver AdamW", "trady"),
    ("solver AdamW", "medyate"),
    ("solver", "medyate"),
    ("solver E=16", "solver"),
    ("medyate", "trady"),
    ("lara-trady", "trady"),
    ("trady", "s-topk-random"),
    ("d-full-random", "s-full-random"),
    ("d-det-rgn", "s-det-rgn"),
    ("trady", "d-full-random"),
    ("trady", "s-det-rgn"),
    ("trady", "d-det-rgn"),
    ("trady", "su"),
    ("solver AdamW", "solver"),
    ("solver weighted", "solver"),
    ("solver momentum", "solver"),
    ("trady momentum", "trady"),
    ("solver AdamW", "LoRA r=2 AdamW"),
    ("solver SinkGD", "LoRA r=2 AdamW"),
    ("solver 1 draw", "solver"),
    ("solver 4 draws", "solver"),
    ("solver with stem", "solver"),
    ("solver 20 layers", "solver"),
    ("solver 10 layers", "solver"),
    ("solver E=1", "solver"),
)
_COMPARED_TEXTS: Final = (
    ("s-det-rgn", "trady"),
    ("solver weighted SinkGD", "s-det-rgn"),
    ("solver weighted SinkGD", "solver SinkGD"),
    ("solver SinkGD", "trady SinkGD"),
    ("trady SinkGD", "s-det-rgn SinkGD"),
    ("solver", "s-det-rgn"),
    ("solver weighted", "s-det-rgn"),
    ("s-det-rgn SinkGD", "s-det-rgn"),
    ("s-det-rgn SinkGD", "s-det-rgn AdamW"),
    ("solver SinkGD", "s-det-rgn SinkGD"),
    ("solver weighted SinkGD", "s-det-rgn SinkGD"),
    ("solver weighted E=16 SinkGD", "s-det-rgn SinkGD"),
    ("solver SinkGD", "s-det-rgn"),
    ("solver SinkGD", "s-det-rgn AdamW"),
    ("solver weighted SinkGD", "s-det-rgn AdamW"),
    ("solver weighted E=16 SinkGD", "s-det-rgn AdamW"),
    ("solver weighted E=16 AdamW", "LoRA r=2 AdamW"),
    ("solver SinkGD", "LoRA r=2 AdamW"),
    ("solver weighted AdamW", "s-det-rgn AdamW"),
    ("solver weighted E=16 AdamW", "s-det-rgn AdamW"),
    ("solver weighted AdamW", "trady AdamW"),
    ("solver weighted E=16 AdamW", "trady AdamW"),
    ("solver weighted E=16 AdamW", "solver E=16 AdamW"),
    ("s-det-rgn AdamW", "trady AdamW"),
    ("d-det-rgn AdamW", "s-det-rgn AdamW"),
    ("s-det-rgn AdamW", "s-det-rgn"),
)


def write_report(rows: Sequence[Row], times: Mapping[str, Any]) -> None:
    """Write the page and its figures.

    Args:
        rows: All runs; those that chose a learning rate are counted only.
        times: Time of a step by policy, from a quiet machine.
    """
    PAGE.write_text(page(rows, times))
    judged, docs = latest(rows), ROOT / "docs"
    smallest = [row for row in judged if is_smallest(row, judged)]
    draw_policies(smallest, _VISION, docs / "accuracy-policies.svg")
    draw_budgets(judged, docs / "accuracy-budgets.svg")
    draw_depth(depth_rows(judged), times["step_ms"], docs / "accuracy-depth.svg")


def page(rows: Sequence[Row], times: Mapping[str, Any]) -> str:
    """The page's text: prose around tables that are made from the results."""
    judged = latest(rows)
    return PROSE.read_text().format(
        runs=_runs(rows),
        recipe=_recipe(judged),
        answers=ANSWERS.read_text(),
        vision=_scores(judged, _VISION, smallest=True),
        vision_tests=_tests(judged, _VISION, _COMPARED),
        budgets=_by_budget(judged),
        text=_scores(judged, (_TEXT,), smallest=False),
        text_tests=_tests(judged, (_TEXT,), _COMPARED_TEXTS),
        lite0=_scores(judged, ("efficientnet-lite0",), smallest=True),
        norms=_scores(judged, ("mbv2-w0.35", "mbv2-w0.35 with norms"), smallest=True, only=_NORM_ROWS),
        depth=_depth(judged, times["step_ms"]),
        ranks=_ranks(),
        rates=_rates(judged),
    )


_NORM_ROWS: Final = ("full", "trady", "full, norms train", "trady, norms train", "solver, norms train")


def _recipe(rows: Sequence[Row]) -> str:
    """How long runs are, pictures first."""
    found = dict.fromkeys((r["recipe"]["epochs"], r["recipe"]["samples"], r["recipe"]["batch_size"]) for r in rows)
    return "; ".join(f"{epochs} epochs of {samples:,} samples in batches of {size}" for epochs, samples, size in found)


def scores_by(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[float]]:
    """Accuracies in percent, grouped."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(100 * row["accuracy"])
    return groups


def _runs(rows: Sequence[Row]) -> str:
    judged = [row for row in rows if not row["choosing"]]
    hours = sum(row["seconds"] for row in rows) / 3600
    versions = ", ".join(sorted({f"torch {row['torch']}" for row in rows}))
    over = sum(bool(row["exceeded"]) for row in judged if row["policy"]["strategy"] not in ("full", "su"))
    return (
        f"{len(judged)} judged runs and {len(rows) - len(judged)} that chose learning rates, {hours:.1f} hours of one "
        f"processor in all ({versions}, {rows[0]['machine']}, two processes of one thread each). "
        f"Runs whose measured bytes exceed their plan: {over}."
    )


def _scores(rows: Sequence[Row], networks: Sequence[str], *, smallest: bool, only: Sequence[str] = ()) -> str:
    chosen = [row for row in rows if row["network"] in networks and (not smallest or is_smallest(row, rows))]
    chosen = [row for row in chosen if not only or row["policy"]["name"] in only]
    columns = sorted({(row["network"], row["data"]) for row in chosen}, key=lambda c: (networks.index(c[0]), c[1]))
    names = list(dict.fromkeys(row["policy"]["name"] for row in chosen))
    by_cell = scores_by(chosen, lambda row: (row["policy"]["name"], row["network"], row["data"]))
    lines = [
        "| policy | " + " | ".join(f"{network}, {data}" for network, data in columns) + " | update bytes |",
        "| --- |" + " --: |" * (len(columns) + 1),
    ]
    names.sort(key=lambda name: -_common_mean(by_cell, name, columns))
    for name in names:
        mine = [row for row in chosen if row["policy"]["name"] == name]
        cells = [_cell(by_cell.get((name, *column))) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {_bytes(mine)} |")
    return "\n".join(lines)


def _common_mean(by_cell: Mapping[Any, list[float]], name: str, columns: Sequence[tuple[str, str]]) -> float:
    """Rank of a policy: how far it is from the mean of each column that it has, on average."""
    distances = []
    for column in columns:
        if found := by_cell.get((name, *column)):
            everyone = [mean_of(scores).value for (_, *where), scores in by_cell.items() if tuple(where) == column]
            distances.append(mean_of(found).value - mean_of(everyone).value)
    return mean_of(distances).value


def _cell(scores: Sequence[float] | None) -> str:
    if not scores:
        return ""
    found = mean_of(scores)
    return f"{found.value:.2f}" + (f" ({found.count})" if found.count > 1 else "")


def _bytes(rows: Sequence[Row]) -> str:
    """Smallest and largest measured bytes of scope ``update``; what always trains is not in it."""
    found = [row["measured_update_bytes"] for row in rows]
    low, high = min(found), max(found)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _tests(rows: Sequence[Row], networks: Sequence[str], compared: Sequence[tuple[str, str]]) -> str:
    mine = [row for row in rows if row["network"] in networks and is_smallest(row, rows)]
    lines = ["| first | second | first minus second, points | p | first ahead |", "| --- | --- | --: | --: | --: |"]
    for first, second in compared:
        found = compare(mine, first, second)
        if found is not None:
            lines.append(
                f"| {first} | {second} | {found.difference:+.2f} ± {found.half_width:.2f} | {found.p_value:.3f} | "
                f"{found.wins:g} of {found.pairs} |"
            )
    return "\n".join(lines)


def compare(rows: Sequence[Row], first: str, second: str) -> Paired | None:
    """Two policies on all networks, data, budgets and seeds that both were run on; ``None`` under two pairs."""
    scores = scores_by_policy(rows)
    ours, theirs = scores.get(first, {}), scores.get(second, {})
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < 2:
        return None
    return paired([ours[where] for where in common], [theirs[where] for where in common])


def _by_budget(rows: Sequence[Row]) -> str:
    mine = [row for row in rows if row["network"] == "mbv2-w0.35" and row["data"] == "food10" and row["seed"] == 0]
    budgets = sorted({row["budget_elements"] for row in mine})
    found = scores_by(mine, lambda row: (row["policy"]["name"], row["budget_elements"]))
    names = [name for name in dict.fromkeys(r["policy"]["name"] for r in mine) if (name, budgets[-1]) in found]
    lines = [
        "| policy | " + " | ".join(f"{budget:,}" for budget in budgets) + " |",
        "| --- |" + " --: |" * len(budgets),
    ]
    lines += [f"| {name} | " + " | ".join(_cell(found.get((name, b))) for b in budgets) + " |" for name in names]
    return "\n".join(lines)


def _depth(rows: Sequence[Row], step_ms: Mapping[str, float]) -> str:
    mine = depth_rows(rows)
    lines = ["| policy | layers | training bytes | step | accuracy |", "| --- | --: | --: | --: | --: |"]
    for name in DEPTHS:
        if name in mine:
            row = mine[name]
            training, accuracy = row["measured_training_bytes"] / 1000, 100 * row["accuracy"]
            lines.append(f"| {name} | {row['layers']} | {training:,.0f} kB | {step_ms[name]:.0f} ms | {accuracy:.2f} |")
    return "\n".join(lines)


def depth_rows(rows: Sequence[Row]) -> dict[str, Row]:
    """mbv2-w0.35 on food10 at the smallest budget, first seed, by policy."""
    mine = [r for r in rows if (r["network"], r["data"], r["seed"]) == ("mbv2-w0.35", "food10", 0)]
    return {row["policy"]["name"]: row for row in mine if is_smallest(row, mine)}


def _ranks() -> str:
    content = json.loads(PRIORITIES.read_text())
    lines = ["| network | between tasks | real against synthetic | tail index |", "| --- | --: | --: | --: |"]
    for network, tails in content["tail_index"].items():
        pairs = [r for r in content["rows"] if r["network"] == network and "another seed" not in r["second"]]
        tasks = [r["spearman"] for r in pairs if "synthetic" not in (r["first"], r["second"])]
        synthetic = [r["spearman"] for r in pairs if "synthetic" in (r["first"], r["second"])]
        alphas = [alpha for name, alpha in tails.items() if name != "synthetic"]
        lines.append(
            f"| {network} | {min(tasks):.2f} to {max(tasks):.2f} | {min(synthetic):.2f} to {max(synthetic):.2f} | "
            f"{min(alphas):.2f} to {max(alphas):.2f} |"
        )
    return "\n".join(lines)


def _rates(rows: Sequence[Row]) -> str:
    """The learning rate each policy chose, by network."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    chosen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["rate"] not in chosen[row["policy"]["name"], row["network"]]:
            chosen[row["policy"]["name"], row["network"]].append(row["rate"])
    names = list(dict.fromkeys(name for name, _ in chosen))
    lines = [f"| policy | {' | '.join(networks)} |", "| --- |" + " --: |" * len(networks)]
    for name in names:
        cells = [", ".join(f"{rate:g}" for rate in sorted(chosen.get((name, network), []))) for network in networks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
