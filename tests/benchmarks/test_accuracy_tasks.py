"""Tasks: what is held out is never trained on, and batches are what the seed says."""

import torch

from benchmarks.accuracy.tasks import NETWORKS, Part, Task

NETWORK = NETWORKS["mbv2-w0.35"]


def task(items: int = 40, size: int = 6, margin: int = 2) -> Task:
    """Pictures in which item i is i everywhere but for a bright left column."""
    side = size + margin
    pictures = torch.arange(items, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, side, side)
    pictures[:, :, :, 0] = 255
    part = Part(pictures, torch.arange(items) % 4)
    return Task(NETWORK, size, 4, part, part)


def pictures_of(part: Part) -> torch.Tensor:
    assert isinstance(part.inputs, torch.Tensor)
    return part.inputs


def values(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures * 0.5 + 0.5).mul(255).round()


def test_what_is_held_out_is_not_trained_on() -> None:
    whole = task()
    part = whole.held_out()
    trained, held = (set(pictures_of(found)[:, 0, 0, 1].tolist()) for found in (part.train, part.test))
    assert not trained & held and trained | held == set(range(len(whole.train)))
    assert len(held) == 8


def test_the_centre_is_cut_without_a_generator() -> None:
    whole = task()
    batch = whole.batch(whole.test, torch.tensor([3, 5]))
    assert isinstance(batch.inputs, torch.Tensor) and batch.inputs.shape == (2, 3, 6, 6)
    assert values(batch.inputs).unique().tolist() == [3, 5]
    assert batch.targets.tolist() == [3, 1]


def test_crops_and_mirrors_are_the_generators() -> None:
    whole, index = task(), torch.arange(40)
    first, again, other = (
        whole.batch(whole.train, index, torch.Generator().manual_seed(seed)).inputs for seed in (0, 0, 1)
    )
    assert isinstance(first, torch.Tensor) and isinstance(again, torch.Tensor) and isinstance(other, torch.Tensor)
    assert torch.equal(first, again) and not torch.equal(first, other)
    bright = values(first) == 255
    assert bright[:, :, :, 0].any() and bright[:, :, :, -1].any(), "some crops have the column, some are mirrored"


def test_all_items_are_judged_once() -> None:
    whole = task(items=11)
    assert [len(batch.targets) for batch in whole.batches(whole.test, 4)] == [4, 4, 3]
