"""The whole ledger of a cost table, for one run or many at once. No torch.

Held by ``tests/planner/costs/test_table_builder.py``.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Self

import numpy as np

from trady.planner.ledger.batched_lines import BatchedLines, Bytes
from trady.planner.ledger.lines import SCOPE_LINES, Ledger, Lines
from trady.planner.ledger.peak import PeakModel
from trady.planner.options import Scope


class BatchedLedger(BatchedLines):
    """Every line and every scope, for any number of channel counts at once.

    Args:
        table: Costs.
    """

    @cached_property
    def peak_model(self) -> PeakModel:
        """Every moment of the step; only of a table that knows lifetimes."""
        return PeakModel(self)

    def prepared(self) -> Self:
        """The same with every moment of the peak at hand, for processes to share."""
        if self.table.gradient_storages is not None:
            _ = self.peak_model
        return self

    def all_lines(self, counts: Bytes, stored: Bytes | None = None, indexed: Bytes | None = None) -> dict[str, Bytes]:
        """:meth:`lines` and, where the peak is known, the workspace, with which the lines add up to it."""
        lines = dict(self.lines(counts, stored, indexed))
        if self.table.gradient_storages is not None:
            rest = sum(lines.values(), start=np.zeros(len(counts), dtype=np.int64))
            lines["workspace"] = self.peak_model.peaks(counts, stored, indexed) - rest
        return lines

    def scope_bytes(
        self, counts: Bytes, scope: Scope, stored: Bytes | None = None, indexed: Bytes | None = None
    ) -> Bytes:
        """Bytes the budget of a scope is held against, ``[runs]``."""
        if scope is Scope.PEAK:
            return self.peak_model.peaks(counts, stored, indexed)
        lines = self.lines(counts, stored, indexed)
        return sum((lines[name] for name in SCOPE_LINES[scope]), start=np.zeros(len(counts), dtype=np.int64))

    def of(
        self,
        counts: Sequence[int],
        stored: Mapping[int, int] | None = None,
        indexed: Mapping[int, int] | None = None,
    ) -> Ledger:
        """The ledger of one run in which ``counts[i]`` channels of layer ``i`` are drawn.

        Args:
            counts: Channels per layer.
            stored: Channels stored per input group; by default the draws are nested, so the most any member draws.
            indexed: Indices kept per input group; by default one for each stored channel.

        Returns:
            Lines and scopes, in bytes.
        """
        kept = (None if given is None else self._group_row(given) for given in (stored, indexed))
        lines = self.all_lines(self.one_run(counts), *kept)
        return Ledger.of(Lines(**{name: int(amounts[0]) for name, amounts in lines.items()}))

    def _group_row(self, amounts: Mapping[int, int]) -> Bytes:
        return self.one_run([amounts.get(group, 0) for group in range(len(self.table.groups))])
