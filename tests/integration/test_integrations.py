"""The engine in other people's loops: the examples run, and runs that were interrupted end as those that were not."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from trady.engine import Engine
from trady.planner.errors import EngineError
from trady.planner.sampling.schedule import draw

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEEDS = {
    "with_a_plain_loop": "torch",
    "with_lightning": "lightning",
    "with_transformers_trainer": "accelerate",
}
ExampleModule = Callable[[str], ModuleType]


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_examples_run(name: str) -> None:
    pytest.importorskip(NEEDS[name])
    done = subprocess.run([sys.executable, f"{name}.py"], cwd=EXAMPLES, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    if name == "with_transformers_trainer":
        assert last.endswith("the same weights: True.")
    else:
        assert float(last.split()[-1].rstrip(".")) > 0.8


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(ours, other.state_dict()[name]) for name, ours in one.state_dict().items())


def test_without_lightning_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "trady.engine.integrations.lightning", raising=False)
    with pytest.raises(EngineError, match=r"neither is installed: pip install 'trady\[lightning\]'"):
        __import__("trady.engine.integrations.lightning")


def test_without_transformers_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "trady.engine.integrations.transformers", raising=False)
    with pytest.raises(EngineError, match=r"not installed: pip install 'trady\[trainer\]'"):
        __import__("trady.engine.integrations.transformers")


@pytest.fixture
def fit(example_module: ExampleModule, tmp_path: Path) -> Callable[..., tuple[Any, Engine]]:
    """Train the Lightning example's module for some epochs, from a checkpoint if one is given."""
    pytest.importorskip("lightning")
    lightning = pytest.importorskip("lightning.pytorch")
    plain, example = example_module("with_a_plain_loop"), example_module("with_lightning")
    from trady.engine.integrations.lightning import EngineCallback
    from trady.planner import make_plan

    def fit(strategy: str, epochs: int, checkpoint: Path | None = None, **options: Any) -> tuple[Any, Engine]:
        network, data = plain.small_network(), plain.coloured_pictures(32)
        plan = make_plan(network, data[:8][0], budget="64KB", batch_size=8, epochs=3, strategy=strategy)
        engine = Engine.attach(network, plan)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[EngineCallback(engine)],
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        module = example.Classifier(network, engine)
        trainer.fit(module, DataLoader(data, batch_size=8), ckpt_path=checkpoint)
        return trainer, engine

    return fit


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strategy", ["solver", "medyate"])
def test_lightning_goes_on_where_it_stopped(
    strategy: str, fit: Callable[..., tuple[Any, Engine]], tmp_path: Path
) -> None:
    """Momentum, draws and norms observed come back: with ``medyate`` the number of slices changes as well."""
    _, whole = fit(strategy, 3)
    trainer, part = fit(strategy, 2)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    saved = torch.load(tmp_path / "part.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("network.") for name in saved} == set(part.model.state_dict())
    _, resumed = fit(strategy, 3, tmp_path / "part.ckpt")
    assert whole.epoch == resumed.epoch == 2
    assert not same_weights(part.model, whole.model)
    assert same_weights(resumed.model, whole.model)
    if strategy == "solver":
        drawn = draw(whole.plan, 2).channels
        assert {name: found.tolist() for name, found in whole.channels.channels.items()} == {
            name: found.tolist() for name, found in drawn.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["solver", "medyate"])
def test_the_trainer_goes_on_where_it_stopped(strategy: str, example_module: ExampleModule, tmp_path: Path) -> None:
    """From inside the second of three epochs, eight steps each."""
    pytest.importorskip("accelerate")
    example = example_module("with_transformers_trainer")
    whole = example.train(tmp_path / "whole", strategy=strategy)
    resumed = example.train(tmp_path / "again", strategy=strategy, resume_from=tmp_path / "whole" / "checkpoint-12")
    assert whole.state.global_step == resumed.state.global_step == 24
    assert same_weights(whole.model, resumed.model)
    saved = torch.load(tmp_path / "whole" / "checkpoint-12" / "trady_draw.pt", weights_only=True)
    assert saved["epoch"] == 1


def test_a_checkpoint_without_a_draw_and_clipping_by_the_trainer_are_refused(
    example_module: ExampleModule, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from trady.engine.integrations.transformers import EngineCallback

    plain = example_module("with_a_plain_loop")
    network, data = plain.small_network(), plain.coloured_pictures(8)
    engine = Engine.attach(network, plain.plan_for(network, data, 8))
    optimizer = torch.optim.SGD(engine.parameters(), lr=0.1)
    with pytest.raises(EngineError, match=r"holds no trady_draw\.pt"):
        EngineCallback(engine, optimizer, resume_from=tmp_path)
    callback = EngineCallback(engine, optimizer)
    with pytest.raises(EngineError, match=r"max_grad_norm=1\.0.*EngineCallback\(max_grad_norm="):
        callback.on_train_begin(TrainingArguments(str(tmp_path)), TrainerState(), TrainerControl())
    other = torch.optim.SGD(network[-1].parameters(), lr=0.1)
    engine.register(None)
    engine.register(other)
    with pytest.raises(EngineError, match="holds none of the engine's slices"):
        engine.resample(0)
    engine.detach()
