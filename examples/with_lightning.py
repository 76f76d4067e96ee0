"""Train inside a plan's bytes with Lightning.

    pip install lightning
    cd examples && python with_lightning.py

Offline, in seconds. The module holds the plain network, so Lightning's checkpoints are those of the plain network, with
the state of the draws among the callbacks': ``trainer.fit(..., ckpt_path=...)`` goes on with the same channels.
"""

import tempfile

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from with_a_plain_loop import EPOCHS, accuracy, coloured_pictures, plan_for, small_network

from trady.engine import Engine
from trady.engine.integrations.lightning import EngineCallback


class Classifier(LightningModule):  # type: ignore[misc]
    """The user's module; that an engine is attached shows in one line only."""

    def __init__(self, network: nn.Module, engine: Engine) -> None:
        super().__init__()
        self.network = network
        self.parameters_to_train = engine.parameters

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        """Loss of a batch."""
        pictures, labels = batch
        return F.cross_entropy(self.network(pictures), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """An optimizer over what trains; the callback lets it follow the draws."""
        return torch.optim.SGD(self.parameters_to_train(), lr=0.1, momentum=0.9)


def main() -> None:
    """Plan, attach, train, detach."""
    network, data = small_network(), coloured_pictures()
    engine = Engine.attach(network, plan_for(network, data, batch_size=8), seed=0)
    print(f"Before: accuracy {accuracy(network, *data.tensors):.2f}.")

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            callbacks=[EngineCallback(engine)],
            default_root_dir=folder,
            gradient_clip_val=1.0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(network, engine), DataLoader(data, batch_size=8, shuffle=True))

    engine.detach()
    print(f"After {engine.epoch + 1} draws: accuracy {accuracy(network, *data.tensors):.2f}.")


if __name__ == "__main__":
    main()
