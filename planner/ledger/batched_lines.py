"""The ledger's lines of many runs at once, the workspace left out: a cost table as matrices. No torch.

Held by ``tests/planner/costs/test_table_builder.py``.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trady.planner.ledger.cost_records import INDEX_BYTES
from trady.planner.ledger.cost_table import CostTable

Bytes: TypeAlias = NDArray[np.int64]


class BatchedLines:
    """What every line of the ledger comes to, for any number of channel counts at once.

    Amounts are summed in float64, exact up to 9 PB.

    Args:
        table: Costs.
    """

    def __init__(self, table: CostTable) -> None:
        self.table = table
        layers, upstreams = table.layers, table.upstreams
        self.group_of = np.array([layer.group for layer in layers], dtype=np.int64)
        self._by_group = np.argsort(self.group_of, kind="stable")
        self._first_of_group = np.searchsorted(self.group_of[self._by_group], np.arange(len(table.groups)))
        self._members = np.array(
            [[float(found.bits >> index & 1) for found in upstreams] for index in range(len(layers))], dtype=np.float32
        ).reshape(len(layers), len(upstreams))
        self._always = np.array([found.always for found in upstreams], dtype=bool)
        self._kept = {line: self._kept_by_upstream(line) for line in ("residuals", "always_trained")}
        inputs = [(group, tensor) for group, found in enumerate(table.groups) for tensor in found.inputs]
        self._prices = np.zeros((len(inputs), len(table.groups)))
        for place, (group, tensor) in enumerate(inputs):
            self._prices[place, group] = tensor.channel_bytes
        self._kept_by = np.array([-1 if tensor.kept_by is None else tensor.kept_by for _, tensor in inputs], np.int64)

    def _kept_by_upstream(self, line: str) -> NDArray[np.float64]:
        kept = np.zeros(len(self.table.upstreams))
        for (of_line, upstream), num_bytes in self.kept_terms.items():
            if of_line == line:
                kept[upstream] += num_bytes
        return kept

    @staticmethod
    def one_run(amounts: Sequence[int]) -> Bytes:
        """Amounts of one run as ``[1, amounts]``."""
        return np.asarray(amounts, dtype=np.int64)[None, :]

    @cached_property
    def kept_terms(self) -> Mapping[tuple[str, int], int]:
        """Kept bytes by line and upstream."""
        terms: dict[tuple[str, int], int] = {}
        for operation in self.table.operations:
            for kept in operation.kept:
                key = (kept.line, kept.upstream)
                terms[key] = terms.get(key, 0) + kept.num_bytes
        return terms

    @cached_property
    def gradient_terms(self) -> Mapping[int, int]:
        """Multiply-adds of gradients towards earlier layers, by upstream."""
        terms: dict[int, int] = {}
        for operation in self.table.operations:
            for upstream in operation.gradients:
                terms[upstream] = terms.get(upstream, 0) + operation.macs
        return terms

    @cached_property
    def lasting_always_bytes(self) -> int:
        """What lives all through a step that draws nothing."""
        state = self.table.always_trained_bytes - sum(found.always_gradients for found in self.table.operations)
        return self.table.weight_bytes + self.table.input_bytes + state

    @cached_property
    def has_fixed_prices(self) -> bool:
        """Whether a stored channel costs the same whatever else trains."""
        by = self._kept_by[self._kept_by >= 0]
        return bool(self._always[by].all())

    def trained(self, counts: Bytes) -> NDArray[np.bool_]:
        """Whether anything of each upstream trains: ``[runs, upstreams]`` from counts ``[runs, layers]``."""
        return self._always | ((counts > 0).astype(np.float32) @ self._members > 0)

    def is_stored(self, trained: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each input of the groups is stored by channel, for nothing keeps it whole: ``[runs, inputs]``."""
        nothing = np.zeros((len(trained), 1), dtype=bool)  # stands last, where -1 points
        is_stored: NDArray[np.bool_] = ~np.concatenate([trained, nothing], axis=1)[:, self._kept_by]
        return is_stored

    def stored_prices(self, trained: NDArray[np.bool_]) -> Bytes:
        """Bytes one channel of each input group stores: ``[runs, groups]``."""
        return _whole(self.is_stored(trained).astype(np.float64) @ self._prices)

    def most_of_groups(self, counts: Bytes) -> Bytes:
        """Channels stored per input group by nested draws, the most any member draws: ``[runs, groups]``."""
        found: Bytes = np.maximum.reduceat(counts[:, self._by_group], self._first_of_group, axis=1)
        return found

    def sums_of_groups(self, counts: Bytes) -> Bytes:
        """Channels of all members of each input group together: ``[runs, groups]``."""
        found: Bytes = np.add.reduceat(counts[:, self._by_group], self._first_of_group, axis=1)
        return found

    def lines(self, counts: Bytes, stored: Bytes | None = None, indexed: Bytes | None = None) -> Mapping[str, Bytes]:
        """Bytes of every line but the workspace, ``[runs]`` each.

        Args:
            counts: Channels drawn, ``[runs, layers]``.
            stored: Channels stored, ``[runs, groups]``; by default the draws are nested.
            indexed: Indices kept, ``[runs, groups]``; by default one for each stored channel.
        """
        table, trained = self.table, self.trained(counts)
        drawn = self.most_of_groups(counts) if stored is None else stored
        opened = counts > 0
        return {
            "gradients": counts @ self._of_layers("gradient_bytes"),
            "saved_activations": (drawn * self.stored_prices(trained)).sum(axis=1),
            "optimizer_state": counts @ self._of_layers("optimizer_bytes")
            + opened @ self._of_layers("optimizer_tensor_bytes"),
            "draw_index": (drawn if indexed is None else indexed).sum(axis=1) * INDEX_BYTES,
            "active_weights": counts @ self._of_layers("active_weight_bytes"),
            "always_trained": table.always_trained_bytes
            + _whole(trained @ self._kept["always_trained"])
            + opened @ self._of_layers("bias_bytes"),
            "residuals": _whole(trained @ self._kept["residuals"]),
            "weights": np.full(len(counts), table.weight_bytes, dtype=np.int64),
            "inputs": np.full(len(counts), table.input_bytes, dtype=np.int64),
        }

    def lasting_bytes(self, counts: Bytes, stored: Bytes | None = None, indexed: Bytes | None = None) -> Bytes:
        """What lives all through the step, ``[runs]``: weights, the batch, slices, indices, optimizer state, biases."""
        drawn = self.most_of_groups(counts) if stored is None else stored
        indices = (drawn if indexed is None else indexed).sum(axis=1)
        channels = self._of_layers("active_weight_bytes") + self._of_layers("optimizer_bytes")
        once = self._of_layers("optimizer_tensor_bytes") + self._of_layers("bias_bytes")
        found: Bytes = self.lasting_always_bytes + counts @ channels + (counts > 0) @ once + INDEX_BYTES * indices
        return found

    def weight_grad_macs(self, counts: Bytes) -> Bytes:
        """Multiply-adds of the drawn weight gradients, ``[runs]``."""
        macs: Bytes = counts @ self._of_layers("weight_grad_macs")
        return macs

    def backward_macs(self, counts: Bytes) -> Bytes:
        """The same and the gradients that lead to them, ``[runs]``."""
        towards = np.zeros(len(self.table.upstreams))
        for upstream, macs in self.gradient_terms.items():
            towards[upstream] += macs
        return _whole(self.trained(counts) @ towards) + self.weight_grad_macs(counts)

    def _of_layers(self, name: str) -> Bytes:
        if name not in self._columns:
            self._columns[name] = np.array([getattr(layer, name) for layer in self.table.layers], dtype=np.int64)
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, Bytes]:
        return {}


def _whole(amounts: NDArray[np.float64]) -> Bytes:
    return np.rint(amounts).astype(np.int64)
