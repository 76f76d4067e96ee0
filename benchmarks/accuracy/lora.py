"""LoRA at equal bytes: adapters on as many of the last layers as the budget holds, measured on autograd."""

import importlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from trady.engine.runtime import saved_tensors, storage_bytes
from trady.planner.costs import OPTIMIZER_STATE
from trady.planner.models import Batch, call_model, map_tensors
from trady.planner.options import OptimizerKind


@dataclass(frozen=True)
class Adapted:
    """A model with adapters.

    Args:
        model: Everything frozen but the adapters and the head.
        layers: Names of the adapted layers.
        update_bytes: What the adapters keep: their gradients, the optimizer's state of them and what they read, which
            autograd saves; of one micro-batch.
        training_bytes: The same with the head and all else that autograd saves.
    """

    model: nn.Module
    layers: Sequence[str]
    update_bytes: int
    training_bytes: int


def adapted(
    model: nn.Module, batch: Batch, *, head: str, rank: int, budget_bytes: int, optimizer: OptimizerKind
) -> Adapted:
    """Put adapters on the last layers, as many as fit.

    The layers are the query and value products of a transformer, as in the LoRA paper, and the pointwise convolutions
    of a network of pictures.

    Args:
        model: The pre-trained network; stays as it is.
        batch: A micro-batch, for which bytes are measured.
        head: Name of the head, which trains whole.
        rank: Of the adapters.
        budget_bytes: For what the adapters keep.
        optimizer: What trains them.

    Raises:
        ValueError: Not even one adapter fits.

    Source:
        LoRA, arXiv 2106.09685; peft.
    """
    names = _adaptable(model)

    @cache
    def with_last(number: int) -> Adapted:
        return _measured(model, batch, names[-number:], head, rank, optimizer)

    fitting = bisect_right(range(1, len(names) + 1), budget_bytes, key=lambda number: with_last(number).update_bytes)
    if not fitting:
        raise ValueError(f"One adapter of rank {rank} needs more than {budget_bytes:,} B. Take a larger budget.")
    return with_last(fitting)


def _adaptable(model: nn.Module) -> list[str]:
    products = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    of_attention = [name for name in products if name.endswith((".query", ".value"))]
    return of_attention or [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    ]


def _measured(
    model: nn.Module, batch: Batch, names: Sequence[str], head: str, rank: int, optimizer: OptimizerKind
) -> Adapted:
    peft: Any = importlib.import_module("peft")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(names))
    own = peft.inject_adapter_in_model(config, deepcopy(model))
    own.requires_grad_(False).eval()
    adapters = [parameter for name, parameter in own.named_parameters() if "lora_" in name]
    trained = [*adapters, *own.get_submodule(head).parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    saved, inputs = _saved(own, batch)
    copies = 1 + OPTIMIZER_STATE[optimizer][0]  # the gradient and the state, but for step counts
    update = copies * _bytes_of(adapters) + sum(saved[storage] for storage in inputs)
    return Adapted(own, tuple(names), update, copies * _bytes_of(trained) + sum(saved.values()))


def _saved(model: nn.Module, batch: Batch) -> tuple[Mapping[int, int], set[int]]:
    """Storages autograd saves for a step with their bytes, and which of them the adapters read.

    Only what adapters read is theirs: PyTorch keeps the inputs of frozen convolutions too.
    """
    read: list[Tensor] = []
    known: list[Tensor] = [*model.parameters(), *model.buffers()]
    map_tensors(known.append, (batch.inputs, batch.targets))
    with ExitStack() as stack, saved_tensors() as held:
        for name, module in model.named_modules():
            if name.endswith((".lora_A.default", ".lora_B.default")):
                hook = module.register_forward_pre_hook(lambda _module, inputs: read.extend(inputs))
                stack.callback(hook.remove)
        loss = F.cross_entropy(call_model(model, batch.inputs), batch.targets)
        saved = storage_bytes(held(), left_out=known)
        assert loss.requires_grad
    return saved, storage_bytes(read).keys() & saved.keys()


def _bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
