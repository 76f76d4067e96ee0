"""``trady-study`` as a user types it, wrong input included."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from trady.planner import Plan, Study
from trady.planner.cli.plan import plan_command
from trady.planner.cli.study import study_command

NETWORKS = """
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )
    return net, torch.zeros(2, 3, 16, 16)


def wide():
    net, inputs = small()
    net[2], net[6] = nn.Conv2d(8, 32, 3, stride=2, padding=1), nn.Linear(32, 4)
    return net, inputs


def without_layers():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(2, 3, 2, 2)
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with networks of the user's own."""
    (tmp_path / "study_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(study_command, [*arguments, "--workers", "1"])


SMALL = "study_networks:small"


def test_a_study_leaves_all_its_files(workplace: Path) -> None:
    pytest.importorskip("plotly")
    result = run(SMALL, "--budgets", "1KB:50KB:5", "--batch-sizes", "1,8", "--inputs", "3x16x16,3x24x24", "-o", "out")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (workplace / "out").iterdir()}
    assert names == {
        "study.json", "rows.jsonl", "rows.csv", "rows.parquet", "study.svg", "study.png", "study.html",
    }  # fmt: skip
    assert "20 rows" in result.stdout
    assert "RGN reached by epoch 50" in result.stdout
    assert "Wrote out/study.html" in result.stderr
    assert len(Study.load("out").rows) == 20


def test_the_options_of_a_row_make_its_plan() -> None:
    result = run(SMALL, "--budgets", "4KB", "--batch-sizes", "4", "--optimizers", "adamw", "--dtypes", "bfloat16")
    assert result.exit_code == 0, result.output
    (row,) = Study.load("study").rows
    assert row.bought is not None
    assert CliRunner().invoke(plan_command, [*row.options.split(), "-o", "plan.json", SMALL]).exit_code == 0
    plan = Plan.load("plan.json")
    assert plan.chosen == {layer.name: layer.channels for layer in row.bought.layers}
    assert plan.ledger.lines.model_dump() == row.bought.lines


def test_json_is_every_row() -> None:
    result = run(SMALL, "--budgets", "1B,4KB", "--json")
    rows = json.loads(result.stdout)
    assert [row["bought"] is None for row in rows] == [True, False]


def test_several_models_one_of_which_fails() -> None:
    result = run(SMALL, "study_networks:without_layers", "study_networks:wide", "--budgets", "4KB,8KB")
    assert result.exit_code == 1
    assert "Error: study_networks:without_layers" in result.stderr
    assert "no layer to draw from" in result.stderr
    assert {row.setting.model for row in Study.load("study").rows if row.bought} == {SMALL, "study_networks:wide"}


def test_models_are_prepared_in_processes_of_their_own() -> None:
    arguments = [SMALL, "study_networks:wide", "--budgets", "4KB,8KB"]
    assert run(*arguments, "-o", "alone").exit_code == 0
    result = CliRunner().invoke(study_command, [*arguments, "--workers", "2", "-o", "shared"])
    assert result.exit_code == 0, result.output
    assert Study.load("shared").rows == Study.load("alone").rows


def test_a_target_finds_its_budget() -> None:
    result = run(SMALL, "--target-coverage", "0.8")
    assert result.exit_code == 0, result.output
    assert "is the smallest budget, to 1 %, that reaches 80 %" in " ".join(result.stdout.split())


def test_the_same_command_goes_on_and_another_is_refused() -> None:
    assert run(SMALL, "--budgets", "4KB").exit_code == 0
    assert run(SMALL, "--budgets", "4KB").exit_code == 0
    result = run(SMALL, "--budgets", "8KB")
    assert result.exit_code == 1
    assert "Folder study holds another study" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budgets", "4MB:32KB:24"], "reversed"),
        (["--budgets", "32KB:4MB:0"], "above 0"),
        (["--budgets", "lots"], "is not a size"),
        (["--budgets", "1KB:4MB:2000", "--batch-sizes", "1:100000:60"], "rows, above 100,000"),
        (["--optimizers", "adagrad"], "Optimizer 'adagrad' is unknown"),
        (["--dtypes", "float8"], "Element type 'float8' is unknown"),
        (["--batch-sizes", "0"], "above 0, got '0'"),
        (["--target-coverage", "7"], "at most 1, got 7"),
        (["--target-coverage", "0.5", "--budgets", "4KB"], "finds its own budgets"),
        (["--priorities", "no.json"], "Priorities no.json: No such file"),
        (["--optimizers", ","], "no optimizers"),
        (["--dtypes", "float32,int8", "--scope", "training"], "accounting for scope 'update' only"),
        (["--horizon", "-1"], "Horizon must be above 0"),
        (["-o", "study_networks.py"], "is a file"),
    ],
)
def test_wrong_input(arguments: list[str], message: str, workplace: Path) -> None:
    before = sorted(path.name for path in workplace.iterdir())
    result = run(SMALL, *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in workplace.iterdir()) == before


def test_priorities_are_one_file_a_model() -> None:
    result = run(SMALL, "study_networks:wide", "--priorities", "a.json", "--budgets", "4KB")
    assert result.exit_code == 1
    assert "1 files of priorities for 2 models" in result.stderr


def test_a_wrong_input_size_is_reported() -> None:
    result = run(SMALL, "--inputs", "5x16x16,3x16x16", "--budgets", "4KB")
    assert result.exit_code == 1
    assert "5x16x16" in result.stderr
    assert [row.status for row in Study.load("study").rows] == ["failed", "optimal"]


def test_norms_are_measured_on_data_for_every_size_and_mode(workplace: Path) -> None:
    colours = [("red", (200, 30, 30)), ("blue", (30, 30, 200))]
    for name, colour in colours:
        (workplace / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (24, 24), colour).save(workplace / "photos" / name / f"{number}.png")
    measuring = ("--calibration-batches", "2", "--calibration-batch-size", "4")
    grid = ("--inputs", "3x16x16,3x24x24", "--norms", "frozen,train", "--budgets", "8KB")
    result = run(SMALL, "--data", "photos", *grid, *measuring)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Measuring gradient norms of study_networks:small") == 4
    rows = Study.load("study").rows
    assert [(row.setting.input, row.setting.norm.value) for row in rows] == [
        ("3x16x16", "frozen"), ("3x16x16", "train"), ("3x24x24", "frozen"), ("3x24x24", "train"),
    ]  # fmt: skip
    assert all(row.bought for row in rows)
