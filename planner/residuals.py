"""What a lean training step keeps for backward, storage by storage, and what makes it be kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trady.planner.capture import Capture, Operation
from trady.planner.layers import Weights, factors_of
from trady.planner.residual_rules import LeanForm, bit_mask_bytes, lean_form, window_position_bytes


@dataclass(frozen=True)
class Kept:
    """Memory a lean step keeps for backward, once, whoever asks for it.

    Args:
        operation: Index of the first operation that asks.
        storage: Storage that is kept; ``None`` for a mask or positions made for backward alone.
        num_bytes: Its size.
        upstream: Bit set of parameters: it is kept when any of them trains.
    """

    operation: int
    storage: int | None
    num_bytes: int
    upstream: int


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
    for index, operation in enumerate(capture.operations):
        for storage, num_bytes, upstream in _asked(capture, operation, weights, drawn_bits):
            if upstream == 0 or (storage is not None and capture.storages[storage].kind != "activation"):
                continue
            if storage is None:
                masks.append(Kept(index, None, num_bytes, upstream))
                continue
            known = by_storage.get(storage)
            first, before = (index, 0) if known is None else (known.operation, known.upstream)
            by_storage[storage] = Kept(first, storage, num_bytes, before | upstream)
    return tuple(sorted([*masks, *by_storage.values()], key=lambda kept: (kept.operation, kept.storage or 0)))


def _asked(
    capture: Capture, operation: Operation, weights: Weights, drawn_bits: int
) -> Iterator[tuple[int | None, int, int]]:
    """Storage (or ``None``), bytes and upstream parameters of each thing an operation keeps."""
    trained = frozenset(operand.name for operand in operation.operands if operand.upstream)
    if not trained:
        return
    form = lean_form(operation.target, operation.api, operation.attributes, trained)
    upstream = 0
    for operand in operation.operands:
        upstream |= operand.upstream
    if form is LeanForm.BIT_MASK:
        yield None, bit_mask_bytes(operation.outputs[0].numel), upstream
    elif form is LeanForm.WINDOW_POSITION:
        kernel = tuple(operation.attributes.get("kernel_size", ()))
        yield None, window_position_bytes(operation.outputs[0].numel, kernel), upstream
    elif form is LeanForm.FACTORS:
        yield from _factors_asked(capture, operation, weights, drawn_bits)
    elif form is None:
        for storage in operation.saved:
            wanted = 0
            for operand in operation.operands:
                if operand.name in operation.triggers[storage]:
                    wanted |= operand.upstream
            if storage not in weights.parameter_of:
                yield storage, capture.storages[storage].num_bytes, wanted


def _factors_asked(
    capture: Capture, operation: Operation, weights: Weights, drawn_bits: int
) -> Iterator[tuple[int | None, int, int]]:
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
        yield (None, part, wanted) if is_weight and 2 * part <= whole else (storage, whole, wanted)
