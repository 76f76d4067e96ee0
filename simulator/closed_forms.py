"""Closed forms of what uniform draws reach, beside which the replay is printed.

Held by ``tests/simulator/test_replay.py``.
"""

from collections.abc import Mapping

import numpy as np

from trady.planner.options import Inclusion
from trady.planner.plan import Plan
from trady.planner.reports import layer_rgn
from trady.planner.sampling import STRATEGIES, coverage_value, waiting_mass
from trady.simulator.streaming_statistics import Values


def closed_forms(plan: Plan, mean_counts: Values, squares: Values) -> Mapping[str, Values] | None:
    """What each measure comes to on average; ``None`` for draws that are not uniform inside layers.

    Every epoch draws a channel of layer l with probability ``n_l / C_l``, whatever it drew before; static strategies
    draw once. Where counts vary from epoch to epoch, ``n_l`` is their mean.

    Args:
        plan: The plan.
        mean_counts: Channels drawn, ``[layers]``.
        squares: Share of the squared gradient norm that each layer holds, ``[epochs, layers]``.
    """
    rule = STRATEGIES[plan.strategy.name]
    if not rule.draw.is_uniform or plan.solver.inclusion is not Inclusion.UNIFORM:
        return None
    layers = plan.table.layers
    sizes = np.array([layer.in_channels for layer in layers])
    shares = (mean_counts / sizes).tolist()
    epochs = len(squares)
    if rule.dynamic:
        reached = np.array([[coverage_value(share, epoch + 1) for share in shares] for epoch in range(epochs)])
        seen = np.array([[coverage_value(share, epoch) for share in shares] for epoch in range(epochs)])
        waited = np.array([[waiting_mass(share, epoch) for share in shares] for epoch in range(epochs)])
    else:
        reached = np.tile(shares, (epochs, 1))
        seen = waited = np.tile(np.arange(epochs)[:, None] > 0, (1, len(layers))).astype(np.float64)
    rgn = np.array(layer_rgn(plan))
    return {
        "channels_reached": reached @ sizes / sizes.sum(),
        "rgn_reached": reached @ rgn / rgn.sum(),
        "repeated_channels": seen @ mean_counts,
        "epochs_waited": waited @ mean_counts,
        "captured_share": squares @ np.array(shares),
    }
