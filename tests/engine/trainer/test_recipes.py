"""Learning rates by their closed form, losses by PyTorch's own, optimizers by what they keep."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from trady.engine.optim.optimizers import make_optimizer
from trady.engine.trainer.recipes import learning_rate_at, make_loss, make_scaler
from trady.engine.trainer.run_options import default_warmup_epochs
from trady.planner.options import DType, OptimizerKind


def test_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = [learning_rate_at(step, peak=0.125, warmup_steps=5, total_steps=50) for step in range(51)]
    assert rates[:5] == [pytest.approx(0.125 * (step + 1) / 6) for step in range(5)]
    assert rates[5] == 0.125 == max(rates)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[50] == pytest.approx(0, abs=1e-12)


def test_rate_is_torchs_cosine() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert learning_rate_at(step, peak=0.1, warmup_steps=0, total_steps=20) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("epochs", "warmup"), [(200, 5), (50, 5), (10, 1), (3, 0.3)])
def test_short_runs_warm_up_shorter(epochs: int, warmup: float) -> None:
    assert default_warmup_epochs(epochs) == pytest.approx(warmup)


@pytest.mark.parametrize(("kind", "tensors"), [("sgd", 0), ("sinkgd", 0), ("momentum", 1), ("adam", 3), ("adamw", 3)])
@pytest.mark.parametrize("named", [OptimizerKind, str])
def test_optimizers_keep_what_their_name_says(kind: str, tensors: int, named: Callable[[str], str]) -> None:
    weight = torch.zeros(4, requires_grad=True)
    optimizer = make_optimizer([weight], named(kind), learning_rate=0.1)
    weight.grad = torch.ones(4)
    optimizer.step()
    assert sum(isinstance(value, torch.Tensor) for value in optimizer.state[weight].values()) == tensors


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)])
def test_smoothed_loss_is_torchs(shape: tuple[int, ...]) -> None:
    logits, targets = torch.randn(shape), torch.randint(5, shape[:-1])
    expected = F.cross_entropy(logits.reshape(-1, 5), targets.flatten(), label_smoothing=0.1)
    assert torch.equal(make_loss(None, 0.1)(logits, targets), expected)
    assert make_loss(None)(logits, targets) < math.inf


def test_only_float16_is_scaled() -> None:
    cpu = torch.device("cpu")
    assert make_scaler(cpu, DType.FLOAT16).is_enabled()
    assert not make_scaler(cpu, DType.BFLOAT16).is_enabled()
    assert not make_scaler(cpu, None).is_enabled()
