"""The commands as a user types them, wrong input included."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from trady.engine.cli import train_command
from trady.engine.trainer.run_options import RunOptions
from trady.planner import Plan

Planned = Callable[..., Plan]
ARGUMENTS = "train_nets:small --data colours.npz --no-augment --no-tensorboard --lr 0.1"


def run(arguments: str) -> Result:
    return CliRunner().invoke(train_command, arguments.split(), terminal_width=110)


@pytest.fixture
def plan_file(planned: Planned, tmp_path: Path) -> Path:
    planned(epochs=2).save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_help_shows_defaults_and_an_example() -> None:
    found = run("--help")
    assert found.exit_code == 0
    for text in ("--resume", "--draw-every", "[default: epoch]", "Example: trady-train plan.json model.pt"):
        assert text in found.stdout


def test_a_run_ends_with_scores_and_both_ledgers(plan_file: Path, tmp_path: Path) -> None:
    found = run(f"{plan_file} {ARGUMENTS} -o {tmp_path / 'a'}")
    assert found.exit_code == 0, found.stderr
    for text in ("before (fresh head, untrained)", "after 2 epochs", "gradients", "saved activations", "tuned.pt"):
        assert text in found.stdout
    assert "Epoch 2/2" in found.stderr and "Draw of epoch 1" in found.stderr


def test_the_summary_for_programs(plan_file: Path, tmp_path: Path) -> None:
    found = run(f"{plan_file} {ARGUMENTS} --epochs 1 --json -o {tmp_path / 'a'}")
    summary = json.loads(found.stdout)
    assert summary["epochs"] == 1 and summary["steps"] == 6
    assert 0 <= summary["after"]["accuracy"] <= 1
    assert summary["before_is"] == "fresh head, untrained"


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.125), ("sinkgd", 0.001), ("adam", 0.001)])
def test_options_come_from_the_plan_and_the_paper(
    planned: Planned, tmp_path: Path, optimizer: str, rate: float
) -> None:
    plan_file = tmp_path / "plan.json"
    planned(epochs=2, optimizer=optimizer).save(plan_file)
    assert run(f"{plan_file} --data colours.npz --epochs 1 -o {tmp_path / 'a'}").exit_code == 0
    options = RunOptions.load(tmp_path / "a")
    assert (options.model, options.batch_size, options.optimizer.value) == ("train_nets:small", 8, optimizer)
    assert (options.learning_rate, options.warmup_epochs, options.label_smoothing) == (rate, 0.1, 0)
    assert (options.weight_decay, options.draw_every, options.amp, options.clip) == (0, "epoch", None, None)
    assert Path(options.data.source).is_absolute()


def test_clipping_under_sinkgd_is_refused(planned: Planned, tmp_path: Path) -> None:
    planned(epochs=2, optimizer="sinkgd").save(tmp_path / "plan.json")
    found = run(f"{tmp_path / 'plan.json'} {ARGUMENTS} --clip 1 -o {tmp_path / 'a'}")
    assert found.exit_code and "--clip 1 does nothing under sinkgd" in found.stderr and "Leave it out" in found.stderr
    assert not (tmp_path / "a").exists()


def test_a_resumed_run_may_start_elsewhere(
    plan_file: Path, tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(f"{plan_file} {ARGUMENTS} -o {tmp_path / 'a'}").exit_code == 0
    before = torch.load(tmp_path / "a" / "tuned.pt", weights_only=True)
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.chdir(tmp_path)
    found = run("--resume a")
    assert found.exit_code == 0, found.stderr
    after = torch.load(tmp_path / "a" / "tuned.pt", weights_only=True)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing PLAN, --data, -o"),
        ("plan.json model.pt -o runs", "Missing --data"),
        (
            "--resume a --epochs 3 --lr 0.1",
            "--resume takes plan, model and options from the run; leave out --epochs, --lr",
        ),
        ("plan.json --draw-every sometimes", "neither epoch, nor never, nor a number of steps"),
        ("plan.json --amp float8", "Invalid value for '--amp'"),
    ],
)
def test_wrong_usage(arguments: str, message: str) -> None:
    found = run(arguments)
    assert found.exit_code == 2
    assert message in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--resume {tmp}/none", "has no config.json (No such file or directory), so there is nothing to go on with"),
        ("{tmp}/none.json {rest} -o {tmp}/a", "none.json: No such file or directory. Make one with trady-plan"),
        ("{plan} {rest} -o {tmp}", "is not empty"),
        ("{plan} {rest} -o {plan}", "is not empty"),
        ("{plan} {rest} -o /proc/a", "cannot be made"),
        ("{plan} nothing.pt --data colours.npz -o {tmp}/a", "Model 'nothing.pt' does not exist"),
        ("{plan} train_nets:small --data none.npz -o {tmp}/a", "Data 'none.npz' does not exist"),
        ("{plan} train_nets:small --data torchvision:MNIST --data-root {tmp} -o {tmp}/a", "--download"),
        ("{plan} {rest} --lr 0 -o {tmp}/a", "Training cannot start: learning_rate: Input should be greater than 0"),
        ("{plan} {rest} --momentum 1 -o {tmp}/a", "momentum: Input should be less than 1"),
        ("{plan} {rest} --batch-size 100 -o {tmp}/a", "has 52 pictures to train on, fewer than one batch of 100"),
    ],
)
def test_what_cannot_be(arguments: str, message: str, plan_file: Path, tmp_path: Path) -> None:
    found = run(arguments.format(tmp=tmp_path, plan=plan_file, rest=ARGUMENTS))
    assert found.exit_code == 1, found.output
    assert found.stderr.count("Error: ") == 1 and "Traceback" not in found.stderr
    assert message in found.stderr.replace("\n", " ")


def test_a_larger_batch_is_noted_with_both_ledgers(plan_file: Path, tmp_path: Path) -> None:
    found = run(f"{plan_file} {ARGUMENTS} --epochs 1 --batch-size 16 -o {tmp_path / 'a'}")
    assert found.exit_code == 0
    assert found.stderr.count("Note: A batch of 16 samples takes update") == 1
    refused = run(f"{plan_file} {ARGUMENTS} --epochs 1 --batch-size 16 --strict -o {tmp_path / 'b'}")
    assert refused.exit_code == 1 and "Error: A batch of 16 samples takes update" in refused.stderr


def test_ctrl_c_saves_and_says_how_to_go_on(plan_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trady.engine.cli", str(plan_file), *ARGUMENTS.split(), "--epochs", "4000"]
    process = subprocess.Popen([*command, "-o", str(tmp_path / "a")], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "a" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"epoch"' in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "This point is saved. Go on with: trady-train --resume" in told
    assert "Traceback" not in told
    assert (tmp_path / "a" / "checkpoint.pt").exists()
