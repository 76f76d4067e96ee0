"""Forward multiply-adds by kind of operation, from fvcore where it counts and from our rule elsewhere."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from trady.planner.costs.table_builder import ATTENTION, operation_macs
from trady.planner.lean import OPAQUE
from trady.planner.models import Inputs, call_model, input_tensors, is_on_meta, map_tensors, undisturbed
from trady.planner.options import NormMode
from trady.planner.tracing import CONVOLUTIONS, GROUPED_PRODUCTS, Operation, Trace, trace


class MacsKind(StrEnum):
    """Kinds of operation that multiply and add."""

    CONVOLUTION = "convolution"
    MATRIX_PRODUCT = "matrix product"
    ADDED_PRODUCT = "batched product with addition"
    GROUPED_PRODUCT = "grouped product"
    ATTENTION = "attention"


class MacsSource(StrEnum):
    """Who counted."""

    FVCORE = "fvcore"
    RULE = "our rule"


#: fvcore's names of what it counts, by our kinds; batch norms, interpolation and the like are not multiply-adds.
_FVCORE_KINDS: Final = {
    "conv": MacsKind.CONVOLUTION,
    "addmm": MacsKind.MATRIX_PRODUCT,
    "linear": MacsKind.MATRIX_PRODUCT,
    "matmul": MacsKind.MATRIX_PRODUCT,
    "bmm": MacsKind.MATRIX_PRODUCT,
    "einsum": MacsKind.MATRIX_PRODUCT,
}


_ATTENTION_CALL: Final = "aten::scaled_dot_product_attention"
_ADDED_PRODUCT_CALL: Final = "aten::baddbmm"
#: Python functions whose inner products are attention's.
_ATTENTION_APIS: Final = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
_BATCHED_PRODUCTS: Final = frozenset({"aten::bmm", "aten::baddbmm"})


@dataclass(frozen=True)
class ForwardMacs:
    """Multiply-adds of one sample's forward pass.

    Args:
        macs: By kind of operation.
        sources: Who counted each kind.
        uncounted: Operations whose multiply-adds nobody counts (recurrent kernels): module and operation.
    """

    macs: Mapping[MacsKind, int]
    sources: Mapping[MacsKind, MacsSource]
    uncounted: tuple[str, ...]

    @property
    def total(self) -> int:
        """All kinds together; FLOPs are twice that."""
        return sum(self.macs.values())


def forward_macs(model: nn.Module, inputs: Inputs, *, traced: Trace | None = None) -> ForwardMacs:
    """Count the multiply-adds of one sample, by kind of operation.

    Args:
        model: The module; left as it was. On the ``meta`` device our rule alone counts.
        inputs: Example inputs; the first sample is used.
        traced: A trace of this very model that holds batch size 1, to save tracing it again.

    Returns:
        Multiply-adds of a sample by kind, and who counted them.

    Error:
        TracingError: The model cannot be followed.
    """
    one = _first_sample(inputs)
    step = (traced or trace(model, one, head="none", batch_sizes=(1,))).at(1).dense_step
    found = None if is_on_meta(model) else _counted_by_fvcore(model, one)
    counted, skipped = found or ({}, frozenset({_ATTENTION_CALL, _ADDED_PRODUCT_CALL}))
    ruled: Counter[MacsKind] = Counter()
    for operation in step.operations:
        ruled[_kind_of(operation, skipped)] += operation_macs(operation)
    macs = {kind: counted.get(kind, ruled[kind]) for kind in MacsKind if counted.get(kind) or ruled[kind]}
    sources = {kind: MacsSource.FVCORE if kind in counted else MacsSource.RULE for kind in macs}
    opaque = dict.fromkeys(f"{kernel.module}:{kernel.target}" for kernel in step.operations if kernel.target in OPAQUE)
    return ForwardMacs(macs, sources, tuple(opaque))


def _kind_of(operation: Operation, skipped: frozenset[str]) -> MacsKind:
    """The kind of an operation, given what fvcore skips: what it skips must be a kind of its own."""
    target, kind = operation.target, MacsKind.MATRIX_PRODUCT
    in_attention = operation.api in _ATTENTION_APIS and target in _BATCHED_PRODUCTS and _ATTENTION_CALL in skipped
    if target in CONVOLUTIONS:
        kind = MacsKind.CONVOLUTION
    elif target in ATTENTION or in_attention:
        kind = MacsKind.ATTENTION
    elif target in GROUPED_PRODUCTS:
        kind = MacsKind.GROUPED_PRODUCT
    elif target == _ADDED_PRODUCT_CALL and _ADDED_PRODUCT_CALL in skipped:
        kind = MacsKind.ADDED_PRODUCT
    return kind


def _counted_by_fvcore(model: nn.Module, inputs: Inputs) -> tuple[dict[MacsKind, int], frozenset[str]] | None:
    """What fvcore counts on real tensors and what it skips; ``None`` where its tracer cannot follow the model."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    tensors = tuple(tensor.to(device) for tensor in input_tensors(inputs))
    with undisturbed(model, NormMode.FROZEN, 0), _without_fvcores_warnings():
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(_Positional(model, inputs), tensors)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        try:
            by_operator, skipped = analysis.by_operator(), frozenset(analysis.unsupported_ops())
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None
    counted: Counter[MacsKind] = Counter()
    for name, macs in by_operator.items():
        if name in _FVCORE_KINDS:
            counted[_FVCORE_KINDS[name]] += int(macs)
    return dict(counted), skipped


class _Positional(nn.Module):
    """A model as fvcore's tracer wants it: tensors in, a tuple of tensors out."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model, self._inputs = model, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        outputs: Any = call_model(self.model, map_tensors(lambda _: next(remaining), self._inputs))
        return tuple(input_tensors(outputs))


@contextmanager
def _without_fvcores_warnings() -> Iterator[None]:
    """Silence what the use of ``torch.jit.trace`` inside fvcore says; other warnings pass."""
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=TracerWarning)
            for category in (FutureWarning, DeprecationWarning):
                warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=category)
            yield
    finally:
        logger.setLevel(level)


def _first_sample(inputs: Inputs) -> Inputs:
    first: Inputs = map_tensors(lambda tensor: tensor[:1] if tensor.dim() else tensor, inputs)
    return first
