"""Predicted bytes against autograd's on a real CUDA device; skipped where there is none."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trady.planner import make_plan, trace
from trady.planner.errors import TracingError
from trady.planner.models.modes import set_training_mode
from trady.planner.models.training_step import cross_entropy
from trady.planner.options import NormMode


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6(), nn.MaxPool2d(2), nn.Dropout(0.1),
        nn.Conv2d(16, 32, 3, groups=4), nn.BatchNorm2d(32), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 5),
    )  # fmt: skip


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
    return nn.Sequential(
        nn.Conv1d(3, 32, 1), nn.Flatten(2), _Tokens(), nn.TransformerEncoder(layer, 2), _Mean(), nn.Linear(32, 5)
    )


class _Tokens(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.transpose(1, 2)


class _Mean(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


def bytes_kept_on_cuda(model: nn.Module, inputs: Tensor, amp: torch.dtype | None) -> int:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Packed:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: Tensor) -> Packed:
        packed = Packed(tensor)
        alive.add(packed)
        return packed

    targets = torch.zeros(len(inputs), dtype=torch.long, device="cuda")
    autocast = torch.autocast("cuda", dtype=amp or torch.bfloat16, enabled=amp is not None)
    with autocast, saved_tensors_hooks(pack, lambda packed: packed.tensor):
        loss = cross_entropy(model(inputs), targets)
    known = [*model.parameters(), *model.buffers(), inputs, targets]
    left_out = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept = {packed.tensor.untyped_storage().data_ptr(): packed.tensor.untyped_storage().nbytes() for packed in alive}
    del loss
    return sum(num_bytes for pointer, num_bytes in kept.items() if pointer not in left_out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("build", [convnet, encoder])
@pytest.mark.parametrize("norm", list(NormMode))
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_saved_bytes_on_cuda(build: Any, norm: NormMode, amp: torch.dtype | None) -> None:
    torch.manual_seed(0)
    model = build()
    inputs = torch.zeros(4, 3, 16, 16) if build is convnet else torch.zeros(4, 3, 24)
    predicted = trace(model, inputs, norm=norm, device="cuda", amp=None if amp is None else "bfloat16").saved_bytes
    set_training_mode(model.cuda(), norm)
    assert predicted == bytes_kept_on_cuda(model, inputs.cuda(), amp)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without CUDA")
def test_a_cuda_plan_made_without_cuda_says_so() -> None:
    plan = make_plan(convnet(), torch.zeros(2, 3, 16, 16), budget="16KB", device="cuda")
    assert plan.settings.device == "cuda"
    assert any("without a CUDA device" in note for note in plan.notes)
    with pytest.raises(TracingError, match="Autocast for CUDA cannot be traced on a machine without CUDA"):
        trace(convnet(), torch.zeros(2, 3, 16, 16), device="cuda", amp="bfloat16")
