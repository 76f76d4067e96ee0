"""Train inside a plan's bytes with a loop of your own.

    cd examples && python with_a_plain_loop.py

Offline, in seconds: a small network and made-up pictures whose classes differ in their colour.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trady.engine import Engine
from trady.planner import Plan, calibrate, make_plan

EPOCHS = 3
CLASSES = 3


def small_network() -> nn.Module:
    """A convolutional network for pictures of 16 by 16 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def coloured_pictures(count: int = 96) -> TensorDataset:
    """Noise ``[count, 3, 16, 16]``, one colour of it brighter: the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    pictures = torch.randn(count, 3, 16, 16, generator=generator)
    pictures[torch.arange(count), labels] += 0.5
    return TensorDataset(pictures, labels)


def plan_for(model: nn.Module, data: TensorDataset, batch_size: int) -> Plan:
    """Plan 64 kB of gradients, momentum and stored activations, by gradients measured on the data."""
    pictures, labels = data[:batch_size]
    priorities = calibrate(model, [(pictures, labels)])
    return make_plan(
        model,
        pictures,
        budget="64KB",
        batch_size=batch_size,
        optimizer="momentum",
        epochs=EPOCHS,
        priorities=priorities,
    )


@torch.no_grad()
def accuracy(model: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Share of pictures that the model gets right."""
    was_training = model.training
    found = model.eval()(pictures).argmax(1)
    model.train(was_training)
    return float((found == labels).double().mean())


def main() -> None:
    """Plan, train, save; what is saved is the plain model."""
    model, data = small_network(), coloured_pictures()
    plan = plan_for(model, data, batch_size=8)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(data, batch_size=8, shuffle=True)
    print(f"Before: accuracy {accuracy(model, *data.tensors):.2f}.")

    engine = Engine(model, plan, seed=0)
    optimizer = torch.optim.SGD(engine.parameters(), lr=0.1, momentum=0.9)
    engine.register(optimizer)
    for epoch in range(EPOCHS):
        print(engine.resample(epoch))
        for x, y in loader:
            criterion(engine(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tuned.pt"
        torch.save(model.state_dict(), path)
        fresh = small_network()
        fresh.load_state_dict(torch.load(path))
    print(f"After, loaded into a fresh model: accuracy {accuracy(fresh, *data.tensors):.2f}.")


if __name__ == "__main__":
    main()
