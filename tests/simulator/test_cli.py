"""``trady-simulate`` as a user meets it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from replays import plan, recording
from trady.simulator.cli import simulate_command
from trady.simulator.results import MEASURES


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    plan().save(path)
    return path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(simulate_command, [str(argument) for argument in arguments])


def test_the_report_sets_policies_side_by_side(plan_file: Path) -> None:
    result = run(plan_file, "--policy", "solver, trady,d-det-rgn", "--epochs", 5, "--trials", 20)
    assert result.exit_code == 0, result.output
    for text in ("5 epochs in 20 trials", "RGN", "closed form", "running cosine", "scope update", "600 B"):
        assert text in result.stdout
    assert "d-det-rgn: its draw has no closed form." in result.stdout
    assert "No epoch of any trial passes the budget." in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Replaying trady" in result.stderr


def test_json_holds_every_series(plan_file: Path) -> None:
    result = run(plan_file, "--policy", "solver,medyate", "--epochs", 4, "--trials", 10, "--json")
    document = json.loads(result.stdout)
    assert [replay["policy"] for replay in document["replays"]] == ["solver", "medyate"]
    for replay in document["replays"]:
        assert set(replay["measures"]) == set(MEASURES)
        assert all(len(series["mean"]) == 4 for series in [*replay["measures"].values(), *replay["lines"].values()])
        assert replay["highest_used_bytes"] <= replay["budget_bytes"] == 600
    assert document["timeline"] is None  # this table has no lifetimes
    assert document["observations"]["rgn"]["num_top"] >= 1


def test_recorded_gradients_are_replayed_and_compared(plan_file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "gradients.safetensors"
    recording(plan()).save(trace)
    result = run(plan_file, "--trace", trace, "--trials", 10, "--figures", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    assert "6 epochs in 10 trials" in result.stdout
    assert "6 epochs recorded on made up" in result.stdout
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"rgn-cumulative.png", "layer-ranks.svg", "channel-ranks.png"} <= names


def test_figures_are_written_and_named(plan_file: Path, tmp_path: Path) -> None:
    result = run(plan_file, "--epochs", 3, "--trials", 5, "--plot", tmp_path / "replay.svg")
    assert result.exit_code == 0, result.output
    assert "closed forms" in (tmp_path / "replay.svg").read_text()
    assert f"Wrote {tmp_path / 'replay.svg'}" in result.stderr


def test_a_page_is_written_and_named(plan_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    result = run(plan_file, "--epochs", 3, "--trials", 5, "--html", tmp_path / "replay.html")
    assert result.exit_code == 0, result.output
    assert '"rgn_reached"' in (tmp_path / "replay.html").read_text(encoding="utf-8")
    assert f"Wrote {tmp_path / 'replay.html'}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--policy", "best"], 1, "Policy 'best' is unknown. Known: solver, trady, s-topk-random"),
        (["--policy", "solver,"], 1, "Policy '' is unknown."),
        (["--policy", "su"], 1, "Strategy 'su' needs a scheme"),
        (["--scheme", "mbv2-49kb"], 1, "A scheme is for policy 'su'. Add su to --policy"),
        (["--epochs", "0"], 1, "Epochs must be from 1 to 32767, got 0"),
        (["--trials", "-1"], 1, "Trials must be 1 or more, got -1"),
        (["--trials", "many"], 2, "'many' is not a valid integer"),
        (["--gradients", "heavy-tailed", "--trace", "x.safetensors"], 1, "either recorded (--trace) or heavy-tailed"),
        (["--trace", "missing.safetensors"], 1, "missing.safetensors"),
        (["--plot", "replay.bmp"], 1, "suffix '.bmp' is not known. Use .png or .svg"),
        (["--html", "replay.htm"], 1, "Page replay.htm: suffix '.htm' is not known. Use .html"),
        (["--timeline", "t.svg"], 1, "its table does not say when a step releases memory"),
        (["--plot", "no/such/folder.png"], 1, "the folder no/such does not exist"),
        (["--figures", "no/such/folder"], 1, "the folder no/such does not exist"),
    ],
)
def test_wrong_use_says_what_to_do(plan_file: Path, arguments: list[str], code: int, message: str) -> None:
    result = run(plan_file, "--trials", 2, "--epochs", 2, *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not result.stdout


def test_a_recording_of_another_model_is_refused(plan_file: Path, tmp_path: Path) -> None:
    other = plan().model_copy(update={"model": plan().model.model_copy(update={"fingerprint": "1" * 64})})
    recording(other).save(tmp_path / "other.safetensors")
    result = run(plan_file, "--trace", tmp_path / "other.safetensors")
    assert result.exit_code == 1
    assert "another model" in result.stderr


def test_a_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    content = json.loads(plan().to_json()) | {"schema_version": 9}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    result = run(tmp_path / "plan.json")
    assert result.exit_code == 1
    assert "is of version 9; this Trady reads version 1. Make it anew with trady-plan." in result.stderr
