"""Adapters take the bytes that autograd says, on as many of the last layers as fit."""

import pytest
import torch
from torch import nn

from trady.planner.models.training_step import Batch
from trady.planner.options import OptimizerKind

pytest.importorskip("peft")
from benchmarks.accuracy.lora import adapted


def batch() -> Batch:
    return Batch(torch.randn(1, 8, 6, 6), torch.tensor([1]))


def expected_bytes(layers: int, rank: int, copies: int) -> int:
    """The input of each layer and what the first half of its adapter gives; both halves, and their copies.

    The first of the four reads the batch, which is there anyway.
    """
    return 4 * (36 * (8 * min(layers, 3) + rank * layers) + copies * rank * (8 + 8) * layers)


@pytest.fixture(name="model")
def _model() -> nn.Module:
    layers = [module for _ in range(4) for module in (nn.Conv2d(8, 8, 1), nn.Hardtanh())]
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 1), ("sinkgd", 1), ("adamw", 3)])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_as_many_layers_as_the_budget_holds(model: nn.Module, optimizer: str, copies: int, layers: int) -> None:
    budget = expected_bytes(layers, 2, copies)
    for budget_bytes, expected in ((budget, layers), (budget - 1, layers - 1)):
        if not expected:
            continue
        found = adapted(
            model, batch(), head="10", rank=2, budget_bytes=budget_bytes, optimizer=OptimizerKind(optimizer)
        )
        assert found.layers == ("0", "2", "4", "6")[-expected:]
        assert found.update_bytes == expected_bytes(expected, 2, copies)


def test_adapters_and_head_train_alone_and_begin_as_the_model(model: nn.Module) -> None:
    found = adapted(model, batch(), head="10", rank=2, budget_bytes=10**6, optimizer=OptimizerKind.SGD)
    trained = {name for name, parameter in found.model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{layer}.lora_{half}.default.weight" for layer in (0, 2, 4, 6) for half in "AB"} | {
        "10.weight",
        "10.bias",
    }
    inputs = batch().inputs
    assert torch.equal(found.model(inputs), model(inputs))
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_no_room_for_one_adapter_is_told(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="One adapter of rank 2 needs more than 100 B"):
        adapted(model, batch(), head="10", rank=2, budget_bytes=100, optimizer=OptimizerKind.SGD)
