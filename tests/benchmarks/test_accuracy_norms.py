"""Norms put back change nothing until they train."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.accuracy.norms import put_norms_back


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1)
    )


def test_the_same_outputs_and_gradients_while_frozen() -> None:
    folded, unfolded = network(), network()
    put_norms_back(unfolded, torch.randn(32, 3, 12, 12))
    x = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(unfolded.eval()(x), folded(x), rtol=1e-4, atol=1e-5)
    for model in (folded, unfolded):
        F.cross_entropy(model(x).mean(dim=(2, 3)), torch.arange(5) % 4).backward()
    for place in (0, 2, 4):
        found = unfolded.get_submodule(str(place)).get_parameter("conv.weight").grad
        torch.testing.assert_close(
            found, folded.get_submodule(str(place)).get_parameter("weight").grad, rtol=1e-3, atol=1e-6
        )


def test_training_norms_normalise() -> None:
    model = network()
    inputs = torch.randn(64, 3, 12, 12)
    put_norms_back(model, inputs)
    norm = model[0].get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    shifted = model.train()[0](5 + 3 * inputs)
    means = shifted.mean(dim=(0, 2, 3))
    torch.testing.assert_close(means, norm.bias, rtol=1e-3, atol=1e-4)
