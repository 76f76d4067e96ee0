"""A small network, its data and its plan, for the tests that train."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trady.planner import Plan, load_model, make_plan
from trady.planner.planning.preparation import prepare

NETS = '''
import numpy as np
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 5),
    )
    return net, torch.zeros(2, 3, 16, 16)


def without_dropout():
    net, inputs = small()
    net[10] = nn.Identity()
    return net, inputs


def bag_of_words():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.mix, self.head = nn.Embedding(32, 16), nn.Linear(16, 16), nn.Linear(16, 2)

        def forward(self, input_ids, attention_mask):
            mask = attention_mask.unsqueeze(2)
            return self.head(torch.relu(self.mix(self.embed(input_ids) * mask)).sum(1))

    ids = torch.zeros(2, 6, dtype=torch.long)
    return Bag(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def batches():
    """Batches whose noise comes from the global generators."""
    for _ in range(6):
        labels = torch.from_numpy(np.random.randint(0, 3, 8))
        yield torch.randn(8, 3, 16, 16) + labels.view(-1, 1, 1, 1), labels


def held_out():
    torch_generator = torch.Generator().manual_seed(1)
    labels = torch.arange(8) % 3
    yield torch.randn(8, 3, 16, 16, generator=torch_generator) + labels.view(-1, 1, 1, 1), labels
'''


@pytest.fixture(scope="session")
def training_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train_nets.py`` and ``colours.npz``: three classes that differ in brightness and colour."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "train_nets.py").write_text(NETS)
    random = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        labels = np.arange(count) % 3
        pixels = random.integers(0, 90, (count, 16, 16, 3)) + 50 * labels[:, None, None, None]
        pixels[..., 0] += 20 * (labels[:, None, None] == 1)
        return pixels.astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = part(52), part(21)
    np.savez(folder / "colours.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return folder


@pytest.fixture
def workplace(training_place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a test that trains; on one thread, as toys are fastest and processes agree."""
    monkeypatch.chdir(training_place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield training_place
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def known_plans() -> dict[str, Plan]:
    """Plans made so far."""
    return {}


@pytest.fixture
def planned(workplace: Path, known_plans: dict[str, Plan]) -> Callable[..., Plan]:
    """Plan a network of ``train_nets`` for some classes."""

    def plan(source: str = "train_nets:small", *, classes: int | None = 3, **options: Any) -> Plan:
        key = repr((source, classes, sorted(options.items())))
        if key not in known_plans:
            known_plans[key] = made(source, classes, options)
        return known_plans[key]

    def made(source: str, classes: int | None, options: dict[str, Any]) -> Plan:
        loaded = load_model(source)
        prepared = prepare(loaded, classes=classes)
        settings: dict[str, Any] = {
            "budget": "24KB",
            "batch_size": 8,
            "epochs": 3,
            "optimizer": "sgd",
            "source": prepared.source,
        }
        return make_plan(loaded.model, prepared.inputs, **settings | options)

    return plan


@pytest.fixture
def files_of_at_most() -> Callable[[int], AbstractContextManager[None]]:
    """The system refuses larger files, as a full disk does."""

    @contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
