"""Train inside a plan's bytes with the Trainer of transformers.

    pip install transformers accelerate
    cd examples && python with_transformers_trainer.py

Offline, in seconds: a small BERT and made-up sentences, whose class is whether a certain word is in them.
"""

import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from trady.engine import Engine
from trady.engine.integrations.transformers import EngineCallback
from trady.planner import make_plan

EPOCHS = 3
BATCH_SIZE = 8
LENGTH = 12
WORD = 7


class Sentences(Dataset[dict[str, torch.Tensor]]):
    """Random word ids; half of the sentences have the word."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(8, 50, (count, LENGTH), generator=generator)
        self.ids[::2, :6] = WORD

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        ids = self.ids[number]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids == WORD).any().long()}


def small_bert() -> BertForSequenceClassification:
    """Two layers of 32 features; no dropout, so that runs can be compared."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def train(folder: Path, *, strategy: str = "solver", resume_from: Path | None = None, epochs: int = EPOCHS) -> Trainer:
    """Plan the model and train it, from the start or from a checkpoint.

    Args:
        folder: Where the Trainer writes its checkpoints.
        strategy: How channels are drawn.
        resume_from: A checkpoint folder of an earlier run.
        epochs: When to stop.
    """
    model, data = small_bert(), Sentences(64)
    inputs = {name: torch.stack([data[number][name] for number in range(2)]) for name in data[0]}
    plan = make_plan(model, inputs, budget="64KB", batch_size=BATCH_SIZE, optimizer="adamw", strategy=strategy)

    engine = Engine.attach(model, plan, seed=0)
    optimizer = torch.optim.AdamW(engine.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH_SIZE,
            save_strategy="steps",
            save_steps=12,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            max_grad_norm=0,
        ),
        train_dataset=data,
        optimizers=(optimizer, schedule),
        callbacks=[EngineCallback(engine, optimizer, max_grad_norm=1.0, resume_from=resume_from)],
    )
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    engine.detach()
    return trainer


def main() -> None:
    """Train, and train again from a checkpoint in the middle of an epoch: the same weights come out."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = train(Path(folder))
        again = train(Path(folder) / "again", resume_from=Path(folder) / "checkpoint-12")
    weights = again.model.state_dict()
    same = all(torch.equal(found, weights[name]) for name, found in trainer.model.state_dict().items())
    print(f"Loss {trainer.state.log_history[-1]['train_loss']:.3f}; resumed from step 12: the same weights: {same}.")


if __name__ == "__main__":
    main()
