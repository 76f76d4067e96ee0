"""Sketches: unbiased, linear, the same everywhere; rows are the input channels of every kind of layer."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from trady.planner.priorities.gradient_sketches import SKETCH_SIZE, channel_rows, sketch


def rows(seed: int, channels: int = 200, elements: int = 27) -> torch.Tensor:
    return torch.randn(channels, elements, generator=torch.Generator().manual_seed(seed))


def test_dot_products_are_those_of_the_gradients_on_average() -> None:
    """Over many channels and seeds of the signs, within three standard errors, for near and for opposed gradients."""
    first = rows(0)
    for share in (-0.7, 0.0, 0.9):
        second = share * first + (1 - share**2) ** 0.5 * rows(1)
        exact = (first * second).sum(dim=1)
        errors = torch.stack(
            [(sketch(first, "w", seed=seed) * sketch(second, "w", seed=seed)).sum(dim=1) - exact for seed in range(100)]
        ).double()
        assert abs(errors.mean()) < 3 * errors.std() / errors.numel() ** 0.5
        per_channel = errors.mean(dim=0) / (errors.std(dim=0) / 10)
        assert per_channel.abs().max() < 5


def test_the_error_of_one_sketch_is_the_stated_one() -> None:
    first, second = rows(0), rows(1)
    exact = (first * second).sum(dim=1)
    errors = torch.stack(
        [(sketch(first, "w", seed=seed) * sketch(second, "w", seed=seed)).sum(dim=1) - exact for seed in range(200)]
    )
    bound = (2 / SKETCH_SIZE) ** 0.5 * first.norm(dim=1) * second.norm(dim=1)
    assert (errors.std(dim=0) < 1.2 * bound).all()


def test_sums_of_sketches_are_sketches_of_sums() -> None:
    first, second = rows(0), rows(1)
    torch.testing.assert_close(sketch(first, "w") + sketch(second, "w"), sketch(first + second, "w"))


def test_signs_differ_between_channels_and_weights_and_seeds_but_not_between_calls() -> None:
    ones = torch.ones(50, 9)
    found = sketch(ones, "w")
    assert found.shape == (50, SKETCH_SIZE) and found.dtype == torch.float32
    assert torch.equal(found, sketch(ones, "w"))
    assert len({tuple(row) for row in found.tolist()}) == 50
    assert not torch.equal(found, sketch(ones, "v"))
    assert not torch.equal(found, sketch(ones, "w", seed=1))


def test_another_process_finds_the_same_sketch() -> None:
    program = (
        "import torch; from trady.planner.priorities.gradient_sketches import sketch;"
        "print(sketch(torch.ones(3, 5), 'w').tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sketch(torch.ones(3, 5), "w").tolist())


@pytest.mark.parametrize(
    ("layer", "channel_dim", "groups"),
    [
        (nn.Conv2d(6, 8, 3), 1, 1),
        (nn.Conv2d(6, 9, 3, groups=3), 1, 3),
        (nn.Conv2d(6, 6, 3, groups=6), 1, 6),
        (nn.Conv2d(6, 12, 3, groups=6), 1, 6),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), 0, 2),
        (nn.Linear(6, 5), 1, 1),
    ],
)
def test_rows_are_what_one_input_channel_gives_a_gradient(layer: nn.Module, channel_dim: int, groups: int) -> None:
    """With all inputs but one channel at zero, dense autograd fills that channel's row and nothing else."""
    weight = layer.get_parameter("weight")
    for channel in range(6):
        inputs = torch.zeros((2, 6) if isinstance(layer, nn.Linear) else (2, 6, 5, 5))
        inputs[:, channel] = 1 + torch.rand_like(inputs[:, channel])
        layer.zero_grad()
        layer(inputs).square().sum().backward()
        assert weight.grad is not None
        found = channel_rows(weight.grad, channel_dim, groups)
        assert found.shape == (6, weight.numel() // 6)
        assert (found[channel] != 0).all()
        assert found.count_nonzero() == found.shape[1]
