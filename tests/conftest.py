"""What several tests need: the asset folder, the networks of ``examples/``, toy nets, the judge, the zoo."""

import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
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


@pytest.fixture(scope="module", autouse=True)
def imports_stay() -> Iterator[None]:
    """Tests that collect garbage need not go through all of PyTorch each time: what is imported by now stays."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Toys are fastest on one thread, above all where other processes want the cores."""
    threads = torch.get_num_threads()
    takes_all = item.get_closest_marker("slow") or item.get_closest_marker("threads")
    torch.set_num_threads(threads if takes_all else 1)
    try:
        return (yield)
    finally:
        torch.set_num_threads(threads)


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


def _neighbour(name: str, folder: str = "tests") -> ModuleType:
    """A file beside the tests: they are no package, so it is imported by its path."""
    known = sys.modules.get(name)
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """Toy nets: ``tests/cases.py``."""
    return _neighbour("cases")


@pytest.fixture(scope="session")
def judges() -> ModuleType:
    """What PyTorch itself says: ``tests/judges.py``."""
    return _neighbour("judges")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium; tests that ask for it are skipped where there is none."""
    with _neighbour("browsing").browser() as running:
        yield running


@pytest.fixture(scope="session")
def zoo_member() -> Callable[[str], Example]:
    """A member of the benchmark's zoo by name: a module with random weights, inputs of two samples."""
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    from benchmarks.zoo.members import members

    by_name = {member.name: member for member in members()}
    return lambda name: by_name[name].build()
