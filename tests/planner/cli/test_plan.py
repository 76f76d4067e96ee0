"""The commands as a user types them, wrong input included."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from trady.planner import GradientRecording, Plan, Priorities
from trady.planner.cli.plan import plan_command
from trady.planner.cli.profile import profile_command

NETWORKS = """
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )
    return net, torch.zeros(2, 3, 16, 16)


def without_layers():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(2, 3, 2, 2)


def with_nan():
    net, inputs = small()
    with torch.no_grad():
        net[3].weight[0, 0] = float("nan")
    return net, inputs


def two_inputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(5, 7), nn.Linear(6, 7), nn.Linear(7, 3)

        def forward(self, left, right):
            return self.head(torch.relu(self.left(left) + self.right(right)))

    return Net(), (torch.zeros(2, 5), torch.zeros(2, 6))


def squared_error(outputs, targets):
    return (outputs - targets).square().mean()


def regression():
    return small()[0], torch.zeros(2, 3, 16, 16), lambda outputs, targets: outputs.square().mean()
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of factories, pictures of two classes, and one of a single class."""
    (tmp_path / "nets.py").write_text(NETWORKS)
    colours = np.random.default_rng(0)
    for folder, classes in (("photos", ("cats", "dogs")), ("one_class", ("cats",))):
        for place, name in enumerate(classes):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(20):
                pixels = colours.integers(0, 128, (24, 24, 3), dtype=np.uint8) + np.uint8(100 * place)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{number}.png")
    (tmp_path / "photos" / "cats" / "broken.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(plan_command, arguments)


def profile(*arguments: str) -> Result:
    return CliRunner().invoke(profile_command, arguments)


def told(result: Result, text: str) -> None:
    """The command could not, said why in its last line, and showed no traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert text in last


def test_plan_is_written_and_shown(workplace: Path) -> None:
    result = plan("--budget", "4KB", "-o", "plan.json", "nets:small")
    assert result.exit_code == 0, result.output
    written = Plan.load("plan.json")
    assert written.ledger.scopes.update <= 4000
    assert written.model.source == "nets:small"
    assert "update" in result.stdout
    assert "Wrote plan.json" in result.stderr


def test_a_plan_is_shown_as_a_page(workplace: Path) -> None:
    pytest.importorskip("plotly")
    result = plan("--budget", "4KB", "-o", "plan.json", "--html", "plan.html", "nets:small")
    assert result.exit_code == 0, result.output
    shown = Path("plan.html").read_text(encoding="utf-8")
    assert all(f'"{name}"' in shown for name in Plan.load("plan.json").chosen)
    assert "Wrote plan.html" in result.stderr
    refused = plan("--budget", "4KB", "--html", "plan.htm", "nets:small")
    assert refused.exit_code == 1
    assert "suffix '.htm' is not known. Use .html" in refused.stderr


@pytest.mark.parametrize(("arguments", "sizes"), [((), range(2, 10**6)), (("--min-value", "0.5"), range(1, 10**6))])
def test_the_largest_batch_that_fits(workplace: Path, arguments: tuple[str, ...], sizes: range) -> None:
    largest = plan("--budget", "60KB", "--scope", "training", "--batch-size", "max", *arguments, "-o", "most.json",
                   "nets:small")  # fmt: skip
    assert largest.exit_code == 0, largest.output
    size = Plan.load("most.json").settings.batch_size
    assert size in sizes
    larger = plan(
        "--budget", "60KB", "--scope", "training", "--batch-size", str(size + 1), "-o", "next.json", "nets:small"
    )
    assert larger.exit_code == 1 or (arguments and Plan.load("next.json").solver.value < 0.5)


def test_summary_as_json_is_all_of_stdout(workplace: Path) -> None:
    result = plan("--budget", "4KB", "--json", "nets:small")
    summary = json.loads(result.stdout)
    assert summary["ledger"]["scopes"]["update"] <= 4000
    assert set(summary["ledger"]["lines"]) >= {"gradients", "saved_activations", "residuals", "workspace"}


def test_same_inputs_give_the_same_bytes(workplace: Path) -> None:
    assert profile("-o", "priorities.json", "nets:small").exit_code == 0
    for name in ("first.json", "second.json"):
        arguments = ("--budget", "4KB", "--priorities", "priorities.json", "-o", name, "nets:small")
        assert plan(*arguments).exit_code == 0
    assert Path("first.json").read_bytes() == Path("second.json").read_bytes()


def test_data_replaces_the_head_and_measures(workplace: Path) -> None:
    arguments = ("--calibration-batches", "2", "--calibration-batch-size", "8", "--data", "photos")
    result = plan("--budget", "16KB", "--scope", "training", "--batch-size", "2", "--optimizer", "adamw", "--epochs",
                  "50", "--input", "3x16x16", *arguments, "-o", "plan.json", "nets:small")  # fmt: skip
    assert result.exit_code == 0, result.output
    written = Plan.load("plan.json")
    assert written.model.head.classes == 2
    assert written.priorities.source == "data"
    assert written.ledger.scopes.training <= 16000
    assert "broken.png" in result.stderr


@pytest.mark.parametrize("strategy", ["trady", "s-full-random", "d-det-rgn", "lara-trady", "medyate"])
def test_strategies_of_the_papers_stay_in_the_budget(workplace: Path, strategy: str) -> None:
    result = plan("--budget", "3000B", "--strategy", strategy, "-o", "plan.json", "nets:small")
    assert result.exit_code == 0, result.output
    assert Plan.load("plan.json").ledger.scopes.update <= 3000


def test_static_scheme_from_a_file(workplace: Path) -> None:
    Path("scheme.json").write_text(json.dumps({"3": 0.5}))
    result = plan("--budget", "64KB", "--strategy", "su", "--scheme", "scheme.json", "-o", "plan.json", "nets:small")
    assert result.exit_code == 0, result.output
    found = Plan.load("plan.json")
    assert found.chosen == {"3": 4}
    assert len(found.strategy.fixed_channels["3"]) == 4


def test_several_inputs_and_own_losses(workplace: Path) -> None:
    assert plan("--budget", "4KB", "nets:two_inputs").exit_code == 0
    assert plan("--budget", "4KB", "nets:regression").exit_code == 0


def test_pickled_module_and_state_dict(workplace: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    torch.save(net, "module.pt")
    result = plan("--budget", "4KB", "module.pt")
    assert result.exit_code == 0, result.output
    assert "assumed" in result.stderr


def test_profile_prints_ranks(workplace: Path) -> None:
    result = profile("--macs", "nets:small")
    assert result.exit_code == 0, result.output
    assert "synthetic" in result.output
    assert Priorities.model_validate_json(profile("--json", "nets:small").stdout).source == "synthetic"


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("1,5MB", "is not a size"),
        ("256KB/s", "is not a size"),
        ("0", "above zero"),
        ("-5KB", "is not a size"),
        ("30B", "trains no layer: the cheapest, '0'"),
    ],
)
def test_budgets_that_cannot_be(workplace: Path, size: str, message: str) -> None:
    told(plan(f"--budget={size}", "-o", "plan.json", "nets:small"), message)
    assert not Path("plan.json").exists()


def test_too_small_a_budget_names_one_that_works(workplace: Path) -> None:
    result = plan("--budget", "30B", "nets:small")
    needed = result.stderr.split("(")[1].split(" B)")[0]
    assert plan("--budget", f"{needed}B", "nets:small").exit_code == 0
    assert plan("--budget", f"{int(needed) - 1}B", "nets:small").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.pt",), "does not exist"),
        (("nets:nothing",), "nothing"),
        (("--input", "4x16x16", "nets:small"), "'0' (Conv2d) cannot run on inputs of shape [1, 4, 16, 16]"),
        (("nets:without_layers",), "no layer to draw from"),
        (("--only", "features.*", "nets:small"), "No layer is left"),
        (("nets:with_nan",), "is not finite in batch 0"),
        (("--data", "one_class", "nets:small"), "one class"),
        (("--data", "nowhere", "nets:small"), "nowhere"),
        (("-o", "missing/plan.json", "nets:small"), "does not exist"),
        (("--scope", "peak", "nets:small"), "does not hold the model even without training"),
        (("--dtype", "int8", "--scope", "training", "nets:small"), "scope 'update' only"),
        (("--priorities", "nets.py", "nets:small"), "cannot be read"),
        (("--strategy", "su", "nets:small"), "needs a scheme"),
        (("--strategy", "su", "--scheme", "mbv2-1kb", "nets:small"), "mbv2-49kb"),
        (("--head", "nose", "nets:small"), "is no layer"),
        (("--max-backward-macs", "1", "nets:small"), "--max-backward-macs"),
    ],
)  # fmt: skip
def test_wrong_input_is_told(workplace: Path, arguments: tuple[str, ...], message: str) -> None:
    told(plan("--budget", "4KB", *arguments), message)


def test_priorities_of_another_model_are_refused(workplace: Path) -> None:
    assert profile("-o", "priorities.json", "nets:two_inputs").exit_code == 0
    told(plan("--budget", "4KB", "--priorities", "priorities.json", "nets:small"), "of another model")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nets:small",),
        ("--budget", "4KB", "--scope", "all", "nets:small"),
        ("--budget", "4KB", "--epochs", "0", "nets:small"),
        ("--budget", "4KB", "--batch-size", "most", "nets:small"),
        ("--budget", "4KB", "--batch-size", "0", "nets:small"),
        ("--budget", "4KB", "--batch-size", "4", "--min-value", "0.5", "nets:small"),
        ("--budget", "4KB", "-o", "photos", "nets:small"),
    ],
)
def test_wrong_usage_exits_with_two(workplace: Path, arguments: tuple[str, ...]) -> None:
    assert plan(*arguments).exit_code == 2


def test_help_shows_defaults_and_an_example() -> None:
    text = plan("--help").output
    assert "[default: update]" in text
    assert "Example: trady-plan --budget 256KB" in text


def test_interrupted_work_leaves_no_file(workplace: Path) -> None:
    (workplace / "slow.py").write_text(NETWORKS + "\nimport time\n\ndef slow():\n    time.sleep(60)\n")
    command = [sys.executable, "-c", "from trady.planner.cli.plan import plan_command; plan_command()"]
    process = subprocess.Popen(
        [*command, "--budget", "4KB", "-o", "plan.json", "slow:slow"], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr is not None
    assert "Loading" in process.stderr.readline()
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing was written" in errors
    assert sorted(path.name for path in workplace.glob("*.json")) == []


@pytest.fixture
def colours(workplace: Path) -> str:
    """Pictures of four classes in an .npz."""
    labels = np.arange(48) % 4
    pixels = np.random.default_rng(0).integers(0, 90, (48, 16, 16, 3)) + 50 * labels[:, None, None, None]
    np.savez(workplace / "colours.npz", x_train=pixels.astype(np.uint8), y_train=labels)
    return "colours.npz"


def test_profile_records_gradients_beside_priorities(workplace: Path, colours: str) -> None:
    arguments = ("--data", colours, "--calibration-batches", "2", "--calibration-batch-size", "8", "nets:small")
    result = profile("--record", "3", "--lr", "0.05", "--norm", "train", "-o", "priorities.json", *arguments)
    assert result.exit_code == 0, result.output
    assert "Recorded epoch 3 of 3, mean loss" in result.stderr
    assert "Wrote priorities.json" in result.stderr and "Wrote gradients.safetensors" in result.stderr
    found = GradientRecording.load("gradients.safetensors")
    header = found.header
    assert (header.source, header.origin, header.seed, header.norm) == ("nets:small", colours, 0, "train")
    assert (header.num_batches, header.batch_size, header.learning_rate) == (2, 8, 0.05)
    assert found.layers == ("0", "3") and found.num_epochs == 3
    assert plan("--budget", "4KB", "-o", "plan.json", *arguments).exit_code == 0
    found.check_fits(*Plan.load("plan.json").recorded_model)
    assert profile("--record", "3", "--lr", "0.05", "--norm", "train", "--trace", "b", *arguments).exit_code == 0
    assert Path("b").read_bytes() == Path("gradients.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--record", "3"), "--record trains on labelled data. Give --data"),
        (("--record", "0", "--data", "colours.npz"), "0 is not in the range x>=1"),
        (("--record", "1", "--lr", "0", "--data", "colours.npz"), "0.0 is not in the range x>0"),
        (("--trace", "b", "--data", "colours.npz"), "--trace names the file of a recording. Give --record N"),
    ],
)
def test_recordings_asked_for_wrongly(colours: str, arguments: tuple[str, ...], message: str) -> None:
    result = profile(*arguments, "nets:small")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_recordings_that_cannot_be(workplace: Path, colours: str) -> None:
    arguments = ("--record", "2", "--data", colours, "--calibration-batch-size", "8", "nets:small")
    told(profile("--lr", "1e30", *arguments), "Lower --lr")
    told(profile("--trace", "missing/b", *arguments), "does not exist")
    assert not Path("gradients.safetensors").exists()
