"""What the user names becomes a model with the wanted head, data, and priorities."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trady.planner.errors import DataError, TradyError
from trady.planner.models.factories import Preprocessing, WeightsOrigin
from trady.planner.models.loading import LoadedModel
from trady.planner.planning.preparation import prepare, priorities_from_data

HALF = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, source="test")


def net_with(classes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


class Features(nn.Module):
    """Logits that are a sum of many layers' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(6))

    def forward(self, pictures: Tensor) -> Tensor:
        for block in self.blocks:
            pictures = pictures + block(pictures)
        return pictures.mean(dim=(2, 3))


def loaded(model: nn.Module, weights: WeightsOrigin = WeightsOrigin.FILE) -> LoadedModel:
    return LoadedModel(model, torch.zeros(2, 3, 12, 12), None, "test", None, weights, HALF)


@pytest.fixture
def three_classes(tmp_path: Path) -> str:
    """Twenty pictures of each of three colours."""
    labels = np.repeat(np.arange(3), 20)
    pixels = np.zeros((60, 12, 12, 3), dtype=np.uint8)
    pixels[np.arange(60), :, :, labels] = 200
    np.savez(tmp_path / "colours.npz", images=pixels, labels=labels)
    return str(tmp_path / "colours.npz")


def test_a_head_for_the_data_replaces_the_models_own(three_classes: str) -> None:
    model = net_with(10)
    before = model.get_parameter("0.weight").clone()
    prepared = prepare(loaded(model), data=three_classes)
    assert prepared.head == "4"
    assert prepared.source.replaced_classes == 3
    assert model[4].out_features == 3
    assert torch.equal(model.get_parameter("0.weight"), before)
    assert isinstance(prepared.inputs, Tensor)
    assert prepared.inputs.shape == (2, 3, 12, 12)


def test_a_head_that_fits_stays(three_classes: str) -> None:
    model = net_with(3)
    head = model[4]
    prepared = prepare(loaded(model), data=three_classes)
    assert model[4] is head
    assert prepared.source.replaced_classes is None


def test_the_same_new_head_every_time(three_classes: str) -> None:
    first, second = net_with(10), net_with(10)
    for model in (first, second):
        torch.rand(3)
        prepare(loaded(model), data=three_classes)
    assert torch.equal(first.get_parameter("4.weight"), second.get_parameter("4.weight"))


def test_new_head_is_fitted_before_norms_are_measured(three_classes: str) -> None:
    model = net_with(10)
    said: list[str] = []
    prepared = prepare(loaded(model), data=three_classes)
    found = priorities_from_data(prepared, num_batches=2, batch_size=8, say=said.append)
    assert found.source == "data"
    assert found.num_batches == 2
    assert [layer.name for layer in found.layers] == ["0"]
    assert said[0].startswith("Calibration will hold about ")
    assert "100.0% of it right" in said[1]


def test_classes_without_data() -> None:
    model = net_with(10)
    assert prepare(loaded(model), classes=7).source.replaced_classes == 7
    assert model[4].out_features == 7


def test_random_weights_are_recorded() -> None:
    assert prepare(loaded(net_with(10))).source.has_weights
    assert not prepare(loaded(net_with(10), WeightsOrigin.RANDOM)).source.has_weights


def test_given_normalisation_is_used_and_recorded(three_classes: str) -> None:
    prepared = prepare(loaded(net_with(3)), data=three_classes, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert prepared.source.pictures is not None
    assert prepared.source.pictures.source == "given"
    assert isinstance(prepared.inputs, Tensor)
    assert prepared.inputs.max() == pytest.approx(200 / 255)


def test_fewer_classes_than_the_data_has(three_classes: str) -> None:
    with pytest.raises(TradyError, match="The data has 3 classes, more than --classes 2"):
        prepare(loaded(net_with(10)), data=three_classes, classes=2)


def test_no_head_to_replace() -> None:
    with pytest.raises(TradyError, match="no head to replace"):
        prepare(loaded(Features()), classes=4)


def test_half_a_normalisation() -> None:
    with pytest.raises(TradyError, match="--mean and --std together"):
        prepare(loaded(net_with(3)), mean=(0.5,) * 3)


def test_norms_need_data() -> None:
    with pytest.raises(DataError, match="need labelled data"):
        priorities_from_data(prepare(loaded(net_with(3))))
