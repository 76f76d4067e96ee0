"""The memory kernels work in, measured on this machine: each distinct operation once, forward and backward.

Kernels allocate beside their results: oneDNN reorders contiguous pictures into blocked layouts, rolls copy once per
dimension, attention has buffers for each thread. Nothing but the allocator knows how much.

Held by ``tests/integration/test_peak.py``.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final

import torch
from torch import Tensor

from trady.planner.costs.allocator import peaks_of
from trady.planner.lean import Convolution, conv_input_gradient, conv_slice_gradient, select_channels
from trady.planner.ledger import SLICE_BLOCK
from trady.planner.models import input_tensors
from trady.planner.tracing import Call, Lifetimes, Shape

_Run = Callable[[], Any]
_Taken = Sequence[Shape | None]

#: Products that work in nothing but their operands, in these types.
_PRODUCTS: Final = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})
_PLAIN_TYPES: Final = frozenset({torch.float32, torch.float64})
#: Elementwise functions and copies: they work in nothing but operands and results.
_PLAIN: Final = frozenset(
    f"aten::{name}{suffix}"
    for name in (
        *(
            "add",
            "sub",
            "mul",
            "div",
            "neg",
            "abs",
            "pow",
            "sqrt",
            "rsqrt",
            "exp",
            "log",
            "clamp",
            "maximum",
            "minimum",
        ),
        *("relu", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "mish", "softplus", "hardswish", "hardsigmoid"),
        *("sigmoid", "tanh", "sin", "cos", "erf", "where", "masked_fill", "bernoulli", "fill", "zero", "copy"),
        *("clone", "_to_copy", "cat", "stack", "contiguous", "empty", "empty_like", "zeros_like", "ones_like"),
        *("full_like", "arange", "as_strided", "_unsafe_view", "native_dropout", "eq", "ne", "gt", "lt", "ge", "le"),
    )
    for suffix in ("", "_")
)
#: Channels whose slice gradient is measured, and all of them: kernels work on blocks, of 16 with AVX-512.
_FEW_CHANNELS: Final = (1, 2, SLICE_BLOCK + 1, 2 * SLICE_BLOCK + 1)
_COLOURS: Final = 4


@dataclass(frozen=True)
class SliceWorkspace:
    """What the gradient of ``n`` channels works in, in bytes by number of channels: measured ones and all."""

    measured: Mapping[int, int]

    def fitted(self) -> tuple[int, int, int]:
        """An upper line through what was measured: bytes whatever the channels, for each, for each block begun.

        One channel is left out where there are more: a depthwise convolution of one channel is an ordinary one.
        Blocks of 16 are two of 8, and the base has one more: half of them begin with their first channel.
        """
        found = {number: size for number, size in self.measured.items() if number > 1} or dict(self.measured)
        least, most = min(found), max(found)
        steps = (blocks for blocks in (1, 2) if least < blocks * SLICE_BLOCK + 1 < most)
        block = max([0, *(-(-(found[blocks * SLICE_BLOCK + 1] - found[least]) // blocks) for blocks in steps)])
        rest = {number: size - block * -(-number // SLICE_BLOCK) for number, size in found.items()}
        channel = max(0, -(-(rest[most] - rest[least]) // (most - least))) if most > least else 0
        base = max(size - channel * number for number, size in rest.items())
        return max(0, base), channel, block


@dataclass(frozen=True)
class Workspaces:
    """Bytes beside operands and results, by place of the operation.

    Args:
        forward: Of the forward kernel.
        backward: Of the gradient towards activations, where it was measured.
        slices: Of a convolution's slice gradient.
    """

    forward: Mapping[int, int] = field(default_factory=dict)
    backward: Mapping[int, int] = field(default_factory=dict)
    slices: Mapping[int, SliceWorkspace] = field(default_factory=dict)


@dataclass
class _Found:
    """Bytes measured of one call at one batch size."""

    forward: int = 0
    backward: int = 0
    slices: SliceWorkspace | None = None


class WorkspaceMeter:
    """Runs operations of a step on zeros and asks the allocator, each distinct one once.

    Args:
        recorded: The step at the planned size, or at two on whose line it lies.
        batch_size: Planned size.
        lean: Places of operations whose backward is the engine's own.

    Known limitations:
        An operation that does not run on zeros counts as working in nothing.
    """

    def __init__(self, recorded: Sequence[Lifetimes], batch_size: int, lean: frozenset[int] = frozenset()) -> None:
        self._recorded, self._batch_size, self._lean = tuple(recorded), batch_size, lean
        self.found = Workspaces()

    def measure(self, place: int) -> None:
        """Add an operation's workspaces to what was found, and those of all operations alike."""
        alike = self._key(place)
        places = [other for other in range(len(self._keys)) if self._key(other) == alike]
        found = [(step.batch_size, self._measured(step, place)) for step in self._recorded]
        result = found[0][1] if len(found) == 1 else _on_line(found[0], found[1], self._batch_size)
        slices = {} if result.slices is None else dict.fromkeys(places, result.slices)
        self.found = Workspaces(
            {**self.found.forward, **dict.fromkeys(places, result.forward)},
            {**self.found.backward, **dict.fromkeys(places, result.backward)},
            {**self.found.slices, **slices},
        )

    def _measured(self, step: Lifetimes, place: int) -> _Found:
        found, call, taken = _Found(), step.calls[place], step.taken.get(place, ())
        try:
            if call.target == "aten::convolution" and place in self._lean:
                _measure_convolution(call, taken, found)
            else:
                _measure_any(call, taken, found, place in self._lean)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            pass  # an operation that zeros do not suit: nothing is known of its workspace
        return found

    def _key(self, place: int) -> tuple[Any, ...]:
        return self._keys[place], self._recorded[0].taken.get(place, ()), place in self._lean

    @cached_property
    def _keys(self) -> list[str]:
        return [call.key for call in self._recorded[0].calls]


def is_measured(call: Call) -> bool:
    """Whether an operation may work in memory that only a run of it shows."""
    shapes = list(_shapes((call.args, call.kwargs)))
    if call.function.is_view or not shapes or call.target in _PLAIN:
        return False
    return call.target not in _PRODUCTS or any(shape.dtype not in _PLAIN_TYPES for shape in shapes)


def _on_line(low: tuple[int, _Found], high: tuple[int, _Found], batch_size: int) -> _Found:
    """What the line through two batch sizes says at another one; never less than measured."""
    steps, span = batch_size - high[0], high[0] - low[0]

    def line(first: int, second: int) -> int:
        return max(first, second) + max(0, second - first) * steps // span

    first, second = low[1], high[1]
    slices = None
    if first.slices is not None and second.slices is not None:
        one, two = first.slices.measured, second.slices.measured
        slices = SliceWorkspace({number: line(one[number], two[number]) for number in one})
    return _Found(line(first.forward, second.forward), line(first.backward, second.backward), slices)


def _shapes(value: Any) -> Sequence[Shape]:
    if isinstance(value, Shape):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [found for item in value for found in _shapes(item)] if isinstance(value, list | tuple) else []


def _measure_any(call: Call, taken: _Taken, found: _Found, lean: bool) -> None:
    found.forward = _forward_workspace(call)
    if not lean and any(shape.requires_grad for shape in _shapes((call.args, call.kwargs))):
        found.backward = _backward_workspace(call, taken)


def _forward_workspace(call: Call) -> int:
    args, kwargs = call.with_tensors(lambda _, shape: shape.zeros())
    with torch.no_grad():
        return _peaks_beside_results([lambda: call.function(*args, **kwargs)], (args, kwargs))[0]


def _backward_workspace(call: Call, taken: _Taken) -> int:
    leaves: list[Tensor] = []

    def trained(_: str, shape: Shape) -> Tensor:
        if not shape.requires_grad:
            return shape.zeros()
        leaves.append(shape.zeros().requires_grad_())
        return leaves[-1].clone()

    with torch.enable_grad():
        args, kwargs = call.with_tensors(trained)
        results = list(input_tensors(call.function(*args, **kwargs)))
    slots = [slot for slot in itertools.zip_longest(results, taken) if slot[0] is not None and slot[0].requires_grad]
    slots = [slot for slot in slots if slot[1] is not None] or slots
    if not slots:
        return 0
    results, gradients = [result for result, _ in slots], [_gradient(*slot) for slot in slots]
    run = partial(torch.autograd.grad, results, leaves, gradients, allow_unused=True)
    return _peaks_beside_results([run], gradients)[0]


def _gradient(result: Tensor, taken: Shape | None) -> Tensor:
    """Zeros in the layout in which the gradient of a result arrives, where that is known."""
    is_known = taken is not None and taken.shape == result.shape and taken.dtype == result.dtype
    return taken.zeros() if taken is not None and is_known else torch.zeros_like(result)


def _measure_convolution(call: Call, taken: _Taken, wanted: _Found) -> None:
    named = call.named
    how = Convolution(
        tuple(named["stride"]),
        tuple(named["padding"]),
        tuple(named["dilation"]),
        named["transposed"],
        tuple(named["output_padding"]),
        named["groups"],
    )
    inputs, weight = named["input"].zeros(), named["weight"].zeros()
    bias = None if named["bias"] is None else named["bias"].zeros()
    outputs: list[Tensor] = []

    def forward() -> Tensor:
        outputs.append(how(inputs, weight, bias))
        return outputs[0]

    with torch.no_grad():
        wanted.forward = _peaks_beside_results([forward])[0]
        grad = _gradient(outputs[0], taken[0] if taken else None)
        runs: list[_Run] = []
        if named["input"].requires_grad:
            runs.append(lambda: conv_input_gradient(grad, weight, inputs.shape[2:], how))
        numbers = _numbers(inputs.shape[1])
        if named["weight"].requires_grad:
            runs += [_slice_run(inputs, grad, weight, how, number) for number in numbers]
        found = _peaks_beside_results(runs)
    if named["input"].requires_grad:
        wanted.backward, found = found[0], found[1:]
    if found:
        wanted.slices = SliceWorkspace(dict(zip(numbers, found, strict=True)))


def _numbers(in_channels: int) -> list[int]:
    """Numbers of channels to measure, 1 and all among them; each one of a stem that reads colours."""
    if in_channels <= _COLOURS:
        return list(range(1, in_channels + 1))
    return sorted({number for number in _FEW_CHANNELS if number < in_channels} | {in_channels})


def _slice_run(inputs: Tensor, grad: Tensor, weight: Tensor, how: Convolution, number: int) -> _Run:
    channels = torch.arange(number, device=inputs.device, dtype=torch.int32)
    stored = select_channels(inputs, channels, 1)
    shape = list(weight.shape)
    if how.transposed:
        shape[0] = number
    elif how.groups == 1:
        shape[1] = number
    else:
        shape[:2] = [number * (weight.shape[0] // how.groups), 1]
    return lambda: conv_slice_gradient(grad, stored, channels, shape, inputs.shape[1], how)


def _peaks_beside_results(runs: Sequence[_Run], operands: Any = ()) -> list[int]:
    """Peak of each run less the storages of what it returns; results that lie on an operand's storage are free."""
    known = {tensor.untyped_storage()._cdata for tensor in input_tensors(operands)}
    sizes: list[int] = []

    def watched(run: _Run) -> _Run:
        def inner() -> None:
            storages = {found.untyped_storage()._cdata: found.untyped_storage() for found in input_tensors(run())}
            sizes.append(sum(int(found.nbytes()) for key, found in storages.items() if key not in known))

        return inner

    device = next((tensor.device for tensor in input_tensors(operands)), torch.device("cpu"))
    peaks = peaks_of([watched(run) for run in runs], device)
    return [max(0, peak - size) for peak, size in zip(peaks, sizes, strict=True)]
