"""Replay a plan from Python: how much of the model each policy reaches, and how good its gradient is.

    python replay_a_plan.py plan.json [--trials 500]

Needs the plan alone, neither the model nor torch.
"""

import argparse

from trady.planner import Plan
from trady.simulator import plot_replay, simulate

POLICIES = ("solver", "trady", "s-topk-random")


def main() -> None:
    """Replay three policies at the plan's budget and draw them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan")
    parser.add_argument("--trials", type=int, default=500)
    arguments = parser.parse_args()
    plan = Plan.load(arguments.plan)
    reports = [simulate(plan, policy=policy, trials=arguments.trials) for policy in POLICIES]
    for report in reports:
        reached, aligned = report.measures["rgn_reached"].last, report.measures["running_cosine"].last
        print(f"{report.policy:>14}: {reached:.1%} of the RGN in {report.epochs} epochs, running cosine {aligned:.2f}")
    plot_replay(reports, "replay.svg")
    print("Wrote replay.svg")


if __name__ == "__main__":
    main()
