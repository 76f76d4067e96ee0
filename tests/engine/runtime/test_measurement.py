"""Which saved tensors are still held, and what they take."""

import pytest
import torch
from torch import Tensor

from trady.engine.runtime.measurement import saved_tensors, storage_bytes


def test_saved_tensors_are_those_the_graph_still_holds() -> None:
    inputs, others = torch.randn(3, 4, requires_grad=True), torch.randn(5, requires_grad=True)
    with saved_tensors() as held:
        sines, aside = inputs.sin(), others.sin()
    assert storage_bytes(held()) == storage_bytes([inputs, others])
    assert storage_bytes(held(), left_out=[inputs]) == storage_bytes([others])
    del aside
    assert storage_bytes(held()) == storage_bytes([inputs])
    (gradient,) = torch.autograd.grad(sines.sum(), inputs)
    assert torch.equal(gradient, inputs.detach().cos())
    assert not held()


def test_nothing_is_watched_after_an_error() -> None:
    inputs = torch.randn(3, requires_grad=True)
    with pytest.raises(ValueError, match="step failed"), saved_tensors() as held:
        raise ValueError("step failed")
    outputs: Tensor = inputs.exp()
    assert not held() and outputs.requires_grad


def test_views_of_one_storage_count_once() -> None:
    tensor = torch.zeros(4, 3)
    assert list(storage_bytes([tensor, tensor[1:], tensor.t()]).values()) == [48]
