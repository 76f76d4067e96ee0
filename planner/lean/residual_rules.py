"""What an operation must keep for its exact gradient: pure arithmetic.

Autograd keeps whole tensors where a bit, a byte or nothing would do, and keeps the input of a frozen
convolution that no gradient reads. Operations with a lean form are listed here; every other one keeps
what autograd saves for the operands that need a gradient.

Held by ``tests/engine/ops/test_ops.py``.
"""

from collections.abc import Mapping
from enum import Enum, auto
from math import prod
from typing import Final


class LeanForm(Enum):
    """How little an operation can keep."""

    NOTHING = auto()
    """Only shapes: average pooling, norms whose statistics and affine are frozen."""
    BIT_MASK = auto()
    """One bit per element: where the gradient passes."""
    WINDOW_POSITION = auto()
    """The position of the maximum inside its window, one byte per output element."""
    FACTORS = auto()
    """A convolution or matrix product: each factor only while the other one's gradient is wanted."""


_BIT_MASKS: Final = frozenset(
    {
        "aten::relu",
        "aten::relu_",
        "aten::hardtanh",
        "aten::hardtanh_",
        "aten::leaky_relu",
        "aten::leaky_relu_",
        "aten::native_dropout",
    }
)
_SHAPES_ONLY: Final = frozenset(
    {
        "aten::avg_pool2d",
        "aten::avg_pool3d",
        "aten::_adaptive_avg_pool2d",
        "aten::_adaptive_avg_pool3d",
    }
)
_FACTORS: Final = frozenset({"aten::convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})
_BATCH_NORMS: Final = frozenset(
    {"aten::native_batch_norm", "aten::_native_batch_norm_legit_no_training", "aten::cudnn_batch_norm"}
)
_MAX_POOLS: Final = frozenset({"aten::max_pool2d_with_indices", "aten::max_pool3d_with_indices"})

#: Operations whose kernel keeps a workspace that fake tensors do not show.
OPAQUE: Final = frozenset(
    {
        "aten::mkldnn_rnn_layer",
        "aten::_cudnn_rnn",
        "aten::miopen_rnn",
        "aten::_thnn_fused_lstm_cell",
        "aten::_cudnn_ctc_loss",
    }
)


def lean_form(target: str, api: str, attributes: Mapping[str, object], trained: frozenset[str]) -> LeanForm | None:
    """The lean form of an operation, or ``None`` where it keeps what autograd saves.

    Args:
        target: Schema name, ``aten::relu``.
        api: Python function it was reached through.
        attributes: Its plain arguments.
        trained: Names of the operands that need a gradient.

    Returns:
        What it keeps; ``None`` where the engine leaves it as it is.
    """
    if target in _FACTORS:
        return LeanForm.FACTORS
    if target in _BIT_MASKS or (target in ("aten::mul", "aten::mul_") and api == "dropout"):
        return LeanForm.BIT_MASK
    if target in _SHAPES_ONLY:
        return LeanForm.NOTHING
    if target in _MAX_POOLS:
        return LeanForm.WINDOW_POSITION
    if target in _BATCH_NORMS and not attributes.get("training") and trained <= {"input"}:
        return LeanForm.NOTHING
    return None


def bit_mask_bytes(elements: int) -> int:
    """Bytes of a mask of one bit per element, rounded up."""
    return (elements + 7) // 8


def window_position_bytes(output_elements: int, kernel_size: tuple[int, ...]) -> int:
    """Bytes of the maximum's position inside each window: one, or two above 256 positions."""
    return output_elements * (1 if prod(kernel_size) <= 256 else 2)
