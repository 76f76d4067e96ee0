"""Scores, counted by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trady.engine.trainer.evaluating import Tally, count_correct, evaluate
from trady.engine.trainer.outcomes import History, Score
from trady.planner.models.training_step import Batch


@pytest.mark.parametrize(
    ("logits", "targets", "expected"),
    [
        (torch.eye(3), torch.tensor([0, 1, 1]), (2, 3)),
        (torch.eye(3).unsqueeze(0), torch.tensor([[0, -100, 2]]), (2, 2)),
        (torch.eye(3).unsqueeze(2).unsqueeze(3), torch.tensor([0, 2, 2]).view(3, 1, 1), (2, 3)),
        (torch.eye(3), torch.tensor([0.5, 1.0, 2.0]), (0, 0)),
        (torch.eye(3), None, (0, 0)),
        (torch.tensor(1.0), torch.tensor([0]), (0, 0)),
    ],
)
def test_right_answers(logits: Tensor, targets: Any, expected: tuple[int, int]) -> None:
    assert count_correct(logits, targets) == expected


def test_means_weigh_each_sample_the_same() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    inputs, targets = torch.randn(7, 4), torch.randint(3, (7,))
    batches = [Batch(inputs[:5], targets[:5]), Batch(inputs[5:], targets[5:])]

    def forward(module: nn.Module, batch: Batch) -> tuple[Any, Tensor]:
        outputs = module(batch.inputs)
        assert not outputs.requires_grad
        return outputs, nn.functional.cross_entropy(outputs, batch.targets)

    tally = evaluate(model, batches, forward)
    assert all(module.training for module in model.modules())
    assert model[2].num_batches_tracked == 0
    with torch.no_grad():
        whole = model.eval()(inputs)
    assert tally.loss == pytest.approx(float(nn.functional.cross_entropy(whole, targets)))
    assert tally.accuracy == pytest.approx(float((whole.argmax(1) == targets).float().mean()))


def test_nothing_seen_has_no_score() -> None:
    assert math.isnan(Tally().loss)
    assert Tally().accuracy is None


def test_better_is_more_accurate_then_less_loss() -> None:
    assert Score(0.5, 0.9).rank > Score(0.1, 0.8).rank
    assert Score(0.1, 0.9).rank > Score(0.5, 0.9).rank
    assert Score(0.1, None).rank > Score(0.5, None).rank


def test_history_survives_a_checkpoint() -> None:
    from dataclasses import asdict

    history = History(Score(1.0, 0.1), Score(0.5, 0.9), None, 3, [1.0, 2.0])
    assert History.restored(asdict(history)) == history
