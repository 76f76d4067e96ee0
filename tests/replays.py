"""A small plan to replay, and a recording of its gradients."""

from typing import Any

import numpy as np

from tables import cost_table, layer_costs, plan_of
from trady.planner.ledger.cost_records import GroupInput, InputGroup
from trady.planner.options import NormMode
from trady.planner.plan.plan import Plan
from trady.planner.priorities.gradient_recordings import GradientRecording, RecordedLayer, RecordingHeader


def plan(**options: Any) -> Plan:
    """Four layers on three inputs, of uneven norms; two read the same tensor."""
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=size, kept_by=None),)) for size in (16, 40, 8)]
    layers = [
        layer_costs(0, 10, 0, optimizer=0, weight_elements=3),
        layer_costs(1, 10, 0, optimizer=0, weight_elements=5),
        layer_costs(2, 16, 1, optimizer=0, weight_elements=2),
        layer_costs(3, 30, 2, optimizer=0, weight_elements=4),
    ]
    rng = np.random.default_rng(3)
    norms = [tuple(rng.lognormal(0, 0.5, layer.in_channels).round(4).tolist()) for layer in layers]
    settings: dict[str, Any] = {"budget_bytes": 600, "counts": (3, 4, 4, 6), "norms": norms} | options
    found = plan_of(cost_table(layers, groups), **settings)
    priorities = found.priorities.model_copy(update={"tail_index": 1.7})
    return found.model_copy(update={"priorities": priorities})


def recording(of: Plan, epochs: int = 6) -> GradientRecording:
    """Gradients that drift and shake, as a training's do."""
    rng = np.random.default_rng(5)
    sketches = []
    for layer in of.table.layers:
        mean = rng.normal(size=(1, layer.in_channels, 8))
        sketches.append((mean + 0.7 * rng.normal(size=(epochs, layer.in_channels, 8))).astype(np.float32))
    norms = [np.linalg.norm(found, axis=2).astype(np.float32) * 1.3 for found in sketches]
    header = RecordingHeader(
        fingerprint=of.model.fingerprint,
        source="tests",
        origin="made up",
        num_batches=2,
        batch_size=4,
        learning_rate=0.1,
        norm=NormMode.FROZEN,
        seed=0,
        sketch_size=8,
        layers=tuple(
            RecordedLayer(name=layer.name, weight_name=layer.weight_name, channels=layer.in_channels)
            for layer in of.table.layers
        ),
        tail_index=(None,) * epochs,
        losses=(1.0,) * epochs,
    )
    return GradientRecording(header, tuple(norms), tuple(sketches))
