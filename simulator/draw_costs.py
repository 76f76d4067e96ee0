"""What a chunk of trials costs in one epoch: bytes by line of the ledger, sparsities and multiply-adds.

Held by ``tests/simulator/test_replay.py``.
"""

from collections.abc import Sequence

import numpy as np

from trady.planner.ledger import SCOPE_LINES, BatchedLedger, Bytes
from trady.planner.plan import Plan
from trady.planner.sampling import ChannelDraws
from trady.simulator.streaming_statistics import Values


class Costs:
    """Prices the draws of a plan.

    Args:
        plan: The plan.
        ledger: Of its table.
    """

    def __init__(self, plan: Plan, ledger: BatchedLedger) -> None:
        self._scope = plan.settings.scope
        self._lines = ledger
        layers, groups = plan.table.layers, len(plan.table.groups)
        self._sizes = np.array([layer.in_channels for layer in layers], dtype=np.int64)
        self._weight_elements = np.array([layer.weight_elements for layer in layers], dtype=np.int64)
        self._input_elements = np.zeros(groups, dtype=np.int64)
        self._widths = np.zeros(groups, dtype=np.int64)
        for layer in reversed(layers):
            self._input_elements[layer.group] = layer.sample_elements
            self._widths[layer.group] = layer.in_channels
        self._known: tuple[bytes, dict[str, Values]] = b"", {}

    def of(self, epochs: Sequence[ChannelDraws]) -> dict[str, Values]:
        """Measures and lines of some epochs, ``[trials, epochs]`` each; draws that all cost the same are priced once.

        Args:
            epochs: At least one, of the same trials.
        """
        counts, stored, indexed = (
            np.concatenate([getattr(draws, name) for draws in epochs]) for name in ("counts", "stored", "indexed")
        )
        amounts = np.concatenate([counts, stored, indexed], axis=1)
        if (amounts == amounts[0]).all():
            key = amounts[0].tobytes()
            if key != self._known[0]:
                self._known = key, self._priced(counts[:1], stored[:1], indexed[:1])
            shape = len(epochs[0].counts), len(epochs)
            return {name: np.broadcast_to(values, shape) for name, values in self._known[1].items()}
        prices = self._priced(counts, stored, indexed)
        return {name: values.reshape(len(epochs), -1).T for name, values in prices.items()}

    def _priced(self, counts: Bytes, stored: Bytes, indexed: Bytes) -> dict[str, Values]:
        lines = self._lines.all_lines(counts, stored, indexed)
        kept, all_inputs = stored @ self._input_elements, self._widths @ self._input_elements
        drawn, all_weights = counts @ self._weight_elements, self._sizes @ self._weight_elements
        measures = {
            "activation_sparsity": 1.0 - kept / np.maximum(1, all_inputs),
            "weight_derivative_sparsity": 1.0 - drawn / all_weights,
            "weight_grad_macs": self._lines.weight_grad_macs(counts),
            "backward_macs": self._lines.backward_macs(counts),
            "used_bytes": sum(lines[name] for name in SCOPE_LINES[self._scope]),
        }
        return {name: np.asarray(values, dtype=np.float64) for name, values in (measures | lines).items()}
