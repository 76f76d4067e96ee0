"""What several tests need: the asset folder and the networks of ``examples/``."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

REPOSITORY = Path(__file__).resolve().parents[1]
FACTORIES = {
    "mbv2-w0.35": "mbv2_w035",
    "mcunet-5fps": "mcunet_5fps",
    "proxyless-w0.3": "proxyless_w03",
    "efficientnet-lite0": "efficientnet_lite0",
    "resnet20-cifar10": "resnet20_cifar10",
    "minilm-l6-h384": "minilm_l6_h384",
}

Example = tuple[nn.Module, Any]


@pytest.fixture(scope="session")
def assets_dir() -> Path:
    folder = Path(os.environ.get("TRADY_ASSETS", REPOSITORY.parent / "shared" / "assets"))
    if not (folder / "weights").is_dir():
        pytest.skip(f"no asset folder at {folder}: set TRADY_ASSETS")
    return folder


@pytest.fixture(scope="session")
def example_module() -> Iterator[Callable[[str], ModuleType]]:
    """Import a script of ``examples/`` by its name, siblings and all."""
    sys.path.insert(0, str(REPOSITORY / "examples"))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(REPOSITORY / "examples"))


@pytest.fixture(scope="session")
def paper_network(assets_dir: Path, example_module: Callable[[str], ModuleType]) -> Callable[[str], Example]:
    """Build a pretrained network by its name in the asset folder: a fresh module in eval mode, example inputs."""
    factories = example_module("paper_networks")

    def build(name: str) -> Example:
        module, inputs = getattr(factories, FACTORIES[name])()
        return module.eval(), inputs

    return build
