"""Train a planned model in a loop of your own: the engine from Python.

    cd examples && trady-plan --budget 256KB --batch-size 8 --classes 2 --input 3x128x128 \
        -o ../out/two_classes.json efficientnet_lite0:efficientnet_lite0
    python train_from_python.py ../out/two_classes.json

The model stays a plain one: what is saved at the end has its keys and nothing of Trady's.
"""

import sys
from pathlib import Path

import torch
from efficientnet_lite0 import EfficientNetLite0, efficientnet_lite0
from torch import Tensor
from torch.nn.functional import cross_entropy
from train_on_solar_cells import solar_cells

from trady.engine import Engine, SinkGD
from trady.planner import Plan
from trady.planner.models import replace_head

EPOCHS = 2
BATCHES = 20


def training_set(side: int = 128) -> tuple[Tensor, Tensor]:
    """Photographs as the weights expect them, ``[N, 3, side, side]``, and labels ``[N]``."""
    data = solar_cells(side)
    pictures = (torch.from_numpy(data["x_train"]).float() - 127) / 128
    return pictures.unsqueeze(1).expand(-1, 3, -1, -1), torch.from_numpy(data["y_train"])


def planned_model(plan: Plan) -> EfficientNetLite0:
    """EfficientNet-Lite0 with the head that the plan was made with."""
    model, _ = efficientnet_lite0()
    assert plan.model.head.classes is not None
    replace_head(model, plan.model.head.layers[0], plan.model.head.classes)
    return model


def main(plan_path: Path) -> None:
    """Train for a few batches, and show the bytes that it took."""
    plan = Plan.load(plan_path)
    model = planned_model(plan)
    engine = Engine(model, plan, seed=0)
    optimizer = engine.register(SinkGD(engine.parameters(), lr=1e-3))
    assert optimizer is not None
    pictures, labels = training_set()
    for epoch in range(EPOCHS):
        print(engine.resample(epoch))
        for chosen in torch.randperm(len(labels)).split(plan.settings.batch_size)[:BATCHES]:
            loss = cross_entropy(engine(pictures[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}")
    size = plan.settings.batch_size
    print(engine.measure(pictures[:size], labels[:size], cross_entropy))
    torch.save(model.state_dict(), plan_path.with_name("tuned.pt"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../out/plan.json"))
