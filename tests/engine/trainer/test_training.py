"""Runs from start to end, stopped in every way there is, and the same to the bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grids import slow_but
from trady.engine.trainer import stepping, training
from trady.engine.trainer.checkpoints import CHECKPOINT_FILE, TUNED_FILE, load_checkpoint
from trady.engine.trainer.outcomes import TrainingReport
from trady.engine.trainer.processes import Processes
from trady.engine.trainer.run_folder import PLAN_FILE
from trady.engine.trainer.run_options import DataOptions, RunOptions, options_for
from trady.engine.trainer.training import train
from trady.planner import Plan, load_model
from trady.planner.errors import DataError, EngineError
from trady.planner.options import DEFAULT_OPTIMIZER
from trady.planner.planning.preparation import prepare
from trady.planner.sampling.schedule import draw

Planned = Callable[..., Plan]
Limit = Callable[[int], AbstractContextManager[None]]


def options(plan: Plan, source: str = "colours.npz", **given: Any) -> RunOptions:
    about_data = {name: given.pop(name) for name in list(given) if name in DataOptions.model_fields}
    data = DataOptions(source=source, **{"augment": False} | about_data)
    chosen = {"data": data, "learning_rate": 0.1, "model": plan.model.source, "tensorboard": False}
    return options_for(plan, chosen | given)


def tuned(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / TUNED_FILE, weights_only=True)  # type: ignore[no-any-return]


def assert_same(folder: Path, other: Path) -> None:
    left, right = tuned(folder), tuned(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def interrupted_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Send this process a signal in the middle of one optimizer step."""
    original, taken = stepping.Stepper.step, []

    def stepped(self: Any, *args: Any) -> int:
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(stepping.Stepper, "step", stepped)


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def test_a_run_leaves_plan_options_metrics_and_plain_weights(planned: Planned, tmp_path: Path) -> None:
    plan = planned()
    report = train(plan, options(plan), tmp_path / "a")
    folder = tmp_path / "a"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"plan.json", "config.json", "metrics.jsonl", "checkpoint.pt", "tuned.pt", "best.pt"}
    assert not any(name.startswith(".") for name in names)
    assert Plan.load(folder / PLAN_FILE) == plan
    assert RunOptions.load(folder) == options(plan)
    plain = prepare(load_model("train_nets:small"), classes=3).loaded.model
    assert plain.load_state_dict(tuned(folder)).missing_keys == []
    assert [len(lines(folder, kind)) for kind in ("start", "draw", "epoch")] == [1, 3, 3]
    assert report.interrupted_by is None
    assert report.measurement is not None
    assert len(report.history.epoch_seconds) == 3


def test_a_run_learns(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=12)
    history = train(plan, options(plan, learning_rate=0.3), tmp_path / "a").history
    assert history.before is not None and history.after is not None and history.best is not None
    assert history.before.loss > 1.3 * history.after.loss
    assert history.after.accuracy is not None and history.after.accuracy > 0.8
    assert history.best.rank >= history.after.rank


def test_a_run_learns_with_the_planners_defaults(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=24, optimizer=DEFAULT_OPTIMIZER)
    history = train(plan, options(plan, learning_rate=None), tmp_path / "a").history
    assert history.before is not None and history.after is not None
    assert history.before.loss > 1.1 * history.after.loss


def test_the_best_weights_score_what_was_told(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=6)
    history = train(plan, options(plan, learning_rate=0.3), tmp_path / "a").history
    model = prepare(load_model("train_nets:small"), classes=3).loaded.model.eval()
    model.load_state_dict(torch.load(tmp_path / "a" / "best.pt", weights_only=True))
    archive = np.load("colours.npz")
    pixels = torch.from_numpy(archive["x_test"]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    answers = model((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).argmax(1)
    assert history.best is not None
    assert history.best.accuracy == float((answers == torch.from_numpy(archive["y_test"])).double().mean())


def test_only_drawn_channels_and_the_head_change(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=2)
    before = prepare(load_model("train_nets:small"), classes=3).loaded.model.state_dict()
    train(plan, options(plan), tmp_path / "a")
    after = tuned(tmp_path / "a")
    drawn: dict[str, set[int]] = {}
    for epoch in range(2):
        for name, channels in draw(plan, epoch).channels.items():
            drawn.setdefault(f"{name}.weight", set()).update(channels.tolist())
    assert drawn
    for name, weight in before.items():
        changed = (
            {int(channel) for channel in (weight != after[name]).flatten(2).any(2).any(0).nonzero()}
            if (weight.dim() == 4)
            else set()
        )
        assert changed == drawn.get(name, set()), name
        if weight.dim() < 4:
            assert torch.equal(weight, after[name]) is not name.startswith("11."), name


def test_a_seed_decides_everything(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(plan, options(plan, seed=seed), tmp_path / name)
    assert_same(tmp_path / "a", tmp_path / "b")
    left, right = tuned(tmp_path / "a"), tuned(tmp_path / "c")
    assert any(not torch.equal(left[name], right[name]) for name in left)


def test_nothing_of_torchs_settings_stays_changed(planned: Planned, tmp_path: Path) -> None:
    plan, handler = planned(epochs=1), signal.getsignal(signal.SIGINT)
    train(plan, options(plan), tmp_path / "a")
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getsignal(signal.SIGINT) is handler


# --- stopped and resumed ---------------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"optimizer": "momentum"},
    "sinkgd": {"optimizer": "sinkgd", "learning_rate": 0.01},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01},
    "adamw-carried": {"optimizer": "adamw", "learning_rate": 0.01, "carry": True},
    "accumulated": {"accumulate": 4, "batch_size": 2, "clip": 0.5},
    "drawn-every-2": {"draw_every": 2, "optimizer": "momentum"},
    "bfloat16": {"amp": "bfloat16"},
    "augmented-workers": {"augment": True, "workers": 1},
    "function": {"source": "train_nets:batches", "validation_source": "train_nets:held_out"},
}
FAST_RUNS = {"adamw-carried", "accumulated", "augmented-workers", "function"}
STRATEGIES = ("trady", "medyate", "d-det-rgn", "s-full-random")


def stopped_and_resumed(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, chosen: RunOptions, folder: Path, step: int
) -> TrainingReport:
    with monkeypatch.context() as patch:
        interrupted_at(patch, step)
        report = train(plan, chosen, folder / "stopped")
    assert report.interrupted_by == signal.SIGINT
    assert report.position.step == step
    checkpoint = load_checkpoint(folder / "stopped")
    assert checkpoint is not None and checkpoint.position == report.position
    assert not (folder / "stopped" / TUNED_FILE).exists()
    torch.manual_seed(12345)
    return train(plan, chosen, folder / "stopped", resume=True)


@pytest.mark.parametrize("name", slow_but(FAST_RUNS.__contains__, RUNS))
def test_ctrl_c_saves_and_the_run_ends_the_same(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given = dict(RUNS[name])
    plan = planned(optimizer=given.get("optimizer", "sgd"))
    chosen = options(plan, **given)
    train(plan, chosen, tmp_path / "whole")
    report = stopped_and_resumed(monkeypatch, plan, chosen, tmp_path, step=9)
    assert report.interrupted_by is None
    assert_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("strategy", slow_but({"medyate", "d-det-rgn"}.__contains__, STRATEGIES))
def test_runs_of_the_papers_strategies_end_the_same(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    plan = planned(strategy=strategy, optimizer="momentum")
    chosen = options(plan)
    train(plan, chosen, tmp_path / "whole")
    stopped_and_resumed(monkeypatch, plan, chosen, tmp_path, step=9)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("step", slow_but({6}.__contains__, [1, 6, 12, 18]))
def test_any_step_will_do(planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The first step, the last of an epoch, the last of all."""
    plan = planned()
    chosen = options(plan)
    train(plan, chosen, tmp_path / "whole")
    stopped_and_resumed(monkeypatch, plan, chosen, tmp_path, step)
    assert_same(tmp_path / "whole", tmp_path / "stopped")
    assert [line["epoch"] for line in lines(tmp_path / "stopped", "epoch")] == [0, 1, 2]
    figures = [
        [{**line, "seconds": 0} for line in lines(tmp_path / folder, "epoch")] for folder in ("whole", "stopped")
    ]
    assert figures[0] == figures[1]


def test_termination_saves_as_ctrl_c_does(planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned()
    interrupted_at(monkeypatch, 3, signal.SIGTERM)
    report = train(plan, options(plan), tmp_path / "a")
    assert report.interrupted_by == signal.SIGTERM
    assert load_checkpoint(tmp_path / "a") is not None


def test_a_finished_run_may_be_resumed(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=1)
    chosen = options(plan)
    train(plan, chosen, tmp_path / "a")
    before = tuned(tmp_path / "a")
    report = train(plan, chosen, tmp_path / "a", resume=True)
    assert report.position.epoch == 1 and len(report.history.epoch_seconds) == 1
    assert all(torch.equal(before[name], found) for name, found in tuned(tmp_path / "a").items())


KILLED = """
import os, signal, sys
from pathlib import Path
from trady.engine.trainer import checkpoints, stepping, training
from trady.engine.trainer.run_options import RunOptions
from trady.planner import Plan
from trady.planner import files

where, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
holder, name = {
    "step": (stepping.Stepper, "_update"),
    "evaluation": (training, "evaluate"),
    "best": (training, "save_weights"),
    "save": (training, "save_checkpoint"),
    "write": (checkpoints.torch, "save"),
    "flush": (files.os, "fsync"),
    "rename": (Path, "replace"),
    "draw": (training, "draw_anew"),
}[where]
original, calls = getattr(holder, name), []

def killing(*args, **kwargs):
    calls.append(1)
    if len(calls) == count:
        if where == "write":
            args[1].write(b"half a file")
            args[1].flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(holder, name, killing)
training.train(Plan.load("plan_of_killed.json"), RunOptions.model_validate_json(Path(sys.argv[4]).read_bytes()), folder)
"""


@pytest.mark.parametrize(
    ("where", "count"),
    [
        pytest.param("step", 3, id="first-epoch"),
        pytest.param("write", 3, id="half-a-checkpoint", marks=pytest.mark.slow),
        pytest.param("step", 10, id="second-epoch", marks=pytest.mark.slow),
        pytest.param("evaluation", 1, id="before-training", marks=pytest.mark.slow),
        pytest.param("evaluation", 3, id="evaluation", marks=pytest.mark.slow),
        pytest.param("best", 1, id="best-weights", marks=pytest.mark.slow),
        pytest.param("save", 2, id="before-saving", marks=pytest.mark.slow),
        pytest.param("flush", 6, id="flushing", marks=pytest.mark.slow),
        pytest.param("rename", 5, id="renaming", marks=pytest.mark.slow),
        pytest.param("draw", 3, id="draw", marks=pytest.mark.slow),
    ],
)
def test_kill_9_at_any_moment(planned: Planned, tmp_path: Path, where: str, count: int) -> None:
    plan = planned(optimizer="momentum")
    plan.save("plan_of_killed.json")
    chosen = options(plan, source=str(Path("colours.npz").resolve()))
    (tmp_path / "options.json").write_text(chosen.model_dump_json())
    arguments = [
        sys.executable,
        "-c",
        KILLED,
        where,
        str(count),
        str(tmp_path / "killed"),
        str(tmp_path / "options.json"),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    train(plan, chosen, tmp_path / "whole")
    train(plan, chosen, tmp_path / "killed", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert not [path for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")]


# --- when it cannot go on --------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(planned: Planned, tmp_path: Path) -> None:
    plan = planned()
    message = r"Training stopped: the loss is (nan|inf) in epoch \d, step \d+, at learning rate .*Start anew with --lr"
    with pytest.raises(EngineError, match=message):
        train(plan, options(plan, learning_rate=1e30, warmup_epochs=0.0), tmp_path / "a")
    assert not (tmp_path / "a" / TUNED_FILE).exists()


def test_the_last_good_checkpoint_is_kept(planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned()
    original, calls = stepping.Stepper.forward, []

    def forward(self: Any, model: Any, batch: Any) -> Any:
        calls.append(model.training)
        outputs, loss = original(self, model, batch)
        return outputs, loss * float("nan") if sum(calls) == 8 else loss

    monkeypatch.setattr(stepping.Stepper, "forward", forward)
    with pytest.raises(EngineError, match=r"the loss is nan in epoch 2, step 8, .*keeps the checkpoint of step 6"):
        train(plan, options(plan), tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a")
    assert checkpoint is not None and checkpoint.position.step == 6
    assert all(bool(torch.isfinite(weight).all()) for weight in checkpoint.model.values() if weight.is_floating_point())


def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_of_at_most: Limit
) -> None:
    plan = planned()
    chosen = options(plan)
    train(plan, chosen, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupted_at(patch, 8)
        train(plan, chosen, tmp_path / "a")
    before = (tmp_path / "a" / CHECKPOINT_FILE).read_bytes()
    message = r"Checkpoint of epoch 2, step 12: .*File too large.*last checkpoint is whole. Free some space"
    with files_of_at_most(8_000), pytest.raises(EngineError, match=message), monkeypatch.context() as patch:
        patch.setattr(training, "save_weights", lambda *_: None)
        train(plan, chosen, tmp_path / "a", resume=True)
    assert (tmp_path / "a" / CHECKPOINT_FILE).read_bytes() == before
    train(plan, chosen, tmp_path / "a", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "a")


def test_a_folder_with_a_run_is_not_overwritten(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(EngineError, match=r"is not empty. Go on with its run by trady-train --resume"):
        train(plan, options(plan), tmp_path)


def test_other_processes_than_at_the_start_are_refused(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=1)
    with pytest.raises(EngineError, match=r"started with 2 processes, not 1, so its global batch is of 16 samples"):
        train(plan, options(plan, processes=2), tmp_path / "a", processes=Processes())


def test_a_plan_of_another_model_is_refused(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=1)
    torch.save(torch.nn.Sequential(*[torch.nn.Conv2d(3, 3, 3) for _ in range(11)], torch.nn.Linear(4, 5)), "other.pt")
    with pytest.raises(EngineError, match=r"0\.weight"):
        train(plan, options(plan, model="other.pt"), tmp_path / "a")


def test_more_classes_than_the_head_has_are_refused(planned: Planned, tmp_path: Path) -> None:
    plan = planned(classes=2)
    with pytest.raises(EngineError, match=r"has 2 outputs, the data 3 classes"):
        train(plan, options(plan), tmp_path / "a")


def test_a_function_that_gives_fewer_batches_than_before_is_told(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("fewer.py").write_text(
        "import torch\ncalls = []\n\ndef batches():\n    calls.append(1)\n    for _ in range(4 - (len(calls) > 1)):\n"
        "        yield torch.randn(8, 3, 16, 16), torch.arange(8) % 3\n"
    )
    plan = planned(epochs=1)
    with pytest.raises(DataError, match=r"fewer:batches gave 3 batches in epoch 0, 4 when they were counted"):
        train(plan, options(plan, "fewer:batches"), tmp_path / "a")


def test_a_larger_batch_than_planned_is_told(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=1)
    with pytest.warns(UserWarning, match="A batch of 16 samples takes update"):
        train(plan, options(plan, batch_size=16), tmp_path / "a")
    with pytest.raises(EngineError, match="A batch of 16 samples takes update"):
        train(plan, options(plan, batch_size=16, strict=True), tmp_path / "b")


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_accumulated_micro_batches_are_one_batch(planned: Planned, tmp_path: Path) -> None:
    plan = planned("train_nets:without_dropout", epochs=2)
    train(plan, options(plan, batches_per_epoch=6), tmp_path / "whole")
    train(plan, options(plan, batch_size=4, accumulate=2, batches_per_epoch=12), tmp_path / "halves")
    left, right = tuned(tmp_path / "whole"), tuned(tmp_path / "halves")
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-6)


def test_draws_follow_the_plans_schedule(planned: Planned, tmp_path: Path) -> None:
    plan = planned()
    for every, numbers in (("epoch", [0, 1, 2]), ("never", []), (5, [0, 1, 2, 3])):
        train(plan, options(plan, draw_every=every), tmp_path / str(every))
        assert [line["draw"] for line in lines(tmp_path / str(every), "draw")] == numbers
    checkpoint = load_checkpoint(tmp_path / "epoch")
    assert checkpoint is not None
    expected = draw(plan, 2).channels
    assert {name: found.tolist() for name, found in checkpoint.draws["channels"].items()} == {
        name: found.tolist() for name, found in expected.items()
    }
    drawn = lines(tmp_path / "epoch", "draw")[1]
    assert drawn["entered"] == drawn["left"] > 0
    assert drawn["update_bytes"] == plan.ledger.scopes.update


def test_clipping_bounds_a_step(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=1)
    before = prepare(load_model("train_nets:small"), classes=3).loaded.model.state_dict()
    chosen = options(plan, clip=1e-3, learning_rate=1.0, batches_per_epoch=1, warmup_epochs=0.0)
    train(plan, chosen, tmp_path / "a")
    change = sum(float((weight - before[name]).square().sum()) for name, weight in tuned(tmp_path / "a").items())
    assert 0 < change**0.5 <= 1e-3 * 1.001


@pytest.mark.parametrize("amp", slow_but({"float16"}.__contains__, ["bfloat16", "float16"]))
def test_mixed_precision_learns(planned: Planned, tmp_path: Path, amp: str) -> None:
    plan = planned(amp=amp, epochs=4)
    history = train(plan, options(plan, learning_rate=0.3), tmp_path / "a").history
    assert history.before is not None and history.after is not None
    assert history.after.loss < history.before.loss
    assert {tensor.dtype for tensor in tuned(tmp_path / "a").values()} <= {torch.float32, torch.int64}


def test_a_fitted_head_starts_better(planned: Planned, tmp_path: Path) -> None:
    plan = planned(epochs=1)
    fresh = train(plan, options(plan), tmp_path / "fresh")
    fitted = train(plan, options(plan, fit_head=True), tmp_path / "fitted")
    assert (fresh.head, fitted.head) == ("fresh head, untrained", "fitted head alone")
    assert fresh.history.before is not None and fitted.history.before is not None
    assert fitted.history.before.loss < fresh.history.before.loss


def test_texts_train(planned: Planned, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {
        word: place + 2 for place, word in enumerate(["good", "bad", "fine", "awful"])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = [f"{label}\t{words}" for label, words in (("1", "good fine good"), ("0", "bad awful"))] * 20
    (tmp_path / "texts.tsv").write_text("\n".join(["label\ttext", *rows]) + "\n")
    plan = planned("train_nets:bag_of_words", classes=None, budget="6KB")
    chosen = options(plan, str(tmp_path / "texts.tsv"), tokenizer=str(tmp_path / "tokenizer.json"), epochs=8)
    history = train(plan, chosen, tmp_path / "a").history
    assert history.after is not None and history.after.accuracy == 1.0


@pytest.mark.slow
def test_compiled_runs_end_about_the_same(planned: Planned, tmp_path: Path) -> None:
    plan = planned("train_nets:without_dropout", epochs=2)
    train(plan, options(plan), tmp_path / "eager")
    train(plan, options(plan, compile=True), tmp_path / "compiled")
    left, right = tuned(tmp_path / "eager"), tuned(tmp_path / "compiled")
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-4)


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_are_one_of_the_same_global_batch(planned: Planned, tmp_path: Path) -> None:
    plan = planned("train_nets:without_dropout", optimizer="momentum", epochs=2)
    plan.save("plan_for_two.json")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = "plan_for_two.json train_nets:without_dropout --data colours.npz --no-augment --lr 0.1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = subprocess.run(
        [*command, "-m", "trady.engine.cli", *arguments.split(), "--batch-size", "4", "-o", str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert two.returncode == 0, two.stderr
    one = train(plan, options(plan), tmp_path / "one")
    left, right = tuned(tmp_path / "one"), tuned(tmp_path / "two")
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-6)
    told = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    assert one.history.after is not None
    assert told["validation_accuracy"] == one.history.after.accuracy
    assert told["validation_loss"] == pytest.approx(one.history.after.loss, rel=1e-4)
