"""What a lean training step keeps for backward, storage by storage, and what makes it be kept.

Held by ``tests/integration/test_saved_bytes.py``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trady.planner.lean import LeanForm, bit_mask_bytes, lean_form, window_position_bytes
from trady.planner.tracing.layers import Weights, factors_of
from trady.planner.tracing.records import Capture, Operation


@dataclass(frozen=True)
class Kept:
    """Memory a lean step keeps for backward, once, whoever asks for it.

    Args:
        operation: Index of the first operation that asks.
        storage: Storage that is kept; ``None`` for a mask or positions made for backward alone.
        num_bytes: Its size.
        upstream: Bit set of parameters: it is kept when any of them trains.
        for_weight: Whether an always-trained weight reads it: then it is that weight's stored input.
    """

    operation: int
    storage: int | None
    num_bytes: int
    upstream: int
    for_weight: bool = False


def kept_storages(capture: Capture, drawable: Mapping[str, int], weights: Weights) -> tuple[Kept, ...]:
    """Everything a lean step may keep, the drawn layers' own inputs left out.

    Args:
        capture: The step, recorded with the drawable weights and the always-trained parameters training.
        drawable: Weight name -> bit of each layer that is drawn from: its stored input channels are not residual.
        weights: The capture's weights.
    """
    drawn_bits = 0
    for bit in drawable.values():
        drawn_bits |= 1 << bit
    by_storage: dict[int, Kept] = {}
    masks = []
    for index in sorted(capture.reaching_loss):
        operation = capture.operations[index]
        for storage, num_bytes, upstream, for_weight in _asked(capture, operation, weights, drawn_bits):
            if upstream == 0 or (storage is not None and capture.storages[storage].kind != "activation"):
                continue
            kept = Kept(index, storage, num_bytes, upstream, for_weight)
            if storage is None:
                masks.append(kept)
            else:
                by_storage[storage] = _merged(by_storage.get(storage), kept)
    return tuple(sorted([*masks, *by_storage.values()], key=lambda kept: (kept.operation, kept.storage or 0)))


def _merged(known: Kept | None, kept: Kept) -> Kept:
    if known is None:
        return kept
    return replace(known, upstream=known.upstream | kept.upstream, for_weight=known.for_weight or kept.for_weight)


def _asked(
    capture: Capture, operation: Operation, weights: Weights, drawn_bits: int
) -> Iterator[tuple[int | None, int, int, bool]]:
    """Storage (or ``None``), bytes, upstream parameters and whether for a weight, of each thing it keeps."""
    trained = frozenset(operand.name for operand in operation.operands if operand.upstream)
    if not trained:
        return
    form = lean_form(operation.target, operation.api, operation.attributes, trained)
    upstream = 0
    for operand in operation.operands:
        upstream |= operand.upstream
    if form is LeanForm.BIT_MASK:
        yield None, bit_mask_bytes(operation.outputs[0].numel), upstream, False
    elif form is LeanForm.WINDOW_POSITION:
        kernel = tuple(operation.attributes.get("kernel_size", ()))
        yield None, window_position_bytes(operation.outputs[0].numel, kernel), upstream, False
    elif form is LeanForm.FACTORS:
        yield from _factors_asked(capture, operation, weights, drawn_bits)
    elif form is None:
        yield from _saved_by_autograd(capture, operation, weights)


def _saved_by_autograd(
    capture: Capture, operation: Operation, weights: Weights
) -> Iterator[tuple[int | None, int, int, bool]]:
    for storage in operation.saved:
        wanted = 0
        for operand in operation.operands:
            if operand.name in operation.triggers[storage]:
                wanted |= operand.upstream
        if storage not in weights.parameter_of:
            yield storage, capture.storages[storage].num_bytes, wanted, False


def _factors_asked(
    capture: Capture, operation: Operation, weights: Weights, drawn_bits: int
) -> Iterator[tuple[int | None, int, int, bool]]:
    """A factor is kept for the other one's gradient; a parameter, or its cast, is at hand anyway.

    The input of an always-trained layer that is a small view (the class token's) is copied out of its storage.
    """
    factors = factors_of(operation)
    if factors is None:
        return
    left, right = factors
    for kept, other in ((left, right), (right, left)):
        storage = kept.tensor.storage
        if storage in weights.parameter_of:
            continue
        is_weight = other.tensor.storage in weights.parameter_of
        wanted = other.upstream & ~drawn_bits if is_weight else other.upstream
        whole, part = capture.storages[storage].num_bytes, kept.tensor.numel * kept.tensor.itemsize
        copied = is_weight and 2 * part <= whole
        yield (None, part, wanted, is_weight) if copied else (storage, whole, wanted, is_weight)
