"""Ask what memory is worth: every budget, batch size and optimizer from one trace.

    pip install "trady[study,vision]"
    python study_budgets.py [torchvision:mobilenet_v2]

Prints which setting reaches the most under three budgets, where each curve bends, and what 90 % takes; writes the
page ``studied/study.html`` to look at. Interrupted, it goes on where it was.
"""

import argparse
from pathlib import Path

from trady.planner import study
from trady.planner.studies import check_extras, write_views


def main() -> None:
    """Study one model and tell what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="torchvision:mobilenet_v2")
    parser.add_argument("--output", default="studied")
    arguments = parser.parse_args()
    found = study(
        arguments.model,
        budgets="32KB:4MB:12",
        batch_sizes=(1, 8),
        optimizers=("sinkgd", "adamw"),
        output=arguments.output,
        progress=lambda number: print(".", end="", flush=True),
    )
    print()
    frame = found.to_dataframe()
    for budget in (frame.budget_bytes.min(), frame.budget_bytes.median(), frame.budget_bytes.max()):
        best = frame[frame.budget_bytes <= budget].sort_values("rgn_reached").iloc[-1]
        print(f"{budget / 1e3:7.0f} kB: batch {best.batch_size}, {best.optimizer} reaches {best.rgn_reached:.1%}")
    for curve, rows in found.answers.curves.items():
        knee, enough = found.answers.knee(curve), found.answers.smallest(0.9, curve)
        bend = "no knee" if knee is None else f"knee at {knee.setting.budget_bytes / 1e3:.0f} kB"
        share = "90 % out of reach" if enough is None else f"90 % from {enough.setting.budget_bytes / 1e3:.0f} kB"
        print(f"batch {rows[0].setting.batch_size}, {rows[0].setting.optimizer}: {bend}, {share}")
    for path in write_views(found, Path(arguments.output), check_extras()):
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
