"""What a user writes against the doors: the right lines pass ``mypy --strict``, every wrong one is told."""

import re
import subprocess
import sys
from pathlib import Path

RIGHT = """
import torch
from torch import nn

from trady.engine import Engine, SinkGD
from trady.planner import Plan, calibrate, load_plan, make_plan, trace
from trady.simulator import simulate

model, inputs = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.randn(2, 3, 2, 2)
batches = [(inputs, torch.tensor([0, 1]))]
kept: int = trace(model, inputs, norm="frozen").at(8).saved_bytes
priorities = calibrate(model, batches)
plan: Plan = make_plan(model, inputs, budget="256KB", batch_size=8, optimizer="adamw", priorities=priorities)
layers: dict[str, int] = plan.chosen
spent: int = load_plan("plan.json").ledger.scopes.training
engine = Engine(model, plan, seed=0)
optimizer: SinkGD = engine.register(SinkGD(engine.parameters(), lr=1e-3))
report = simulate(plan, policy="trady", trials=100)
optimizer.step()
peak: int = engine.measure(inputs).peak_bytes
"""
WRONG = """
import torch
from torch import nn

from trady.engine import Engine, SinkGD
from trady.planner import Plan, load_plan, make_plan, trace
from trady.simulator import simulate

model, inputs = nn.Linear(3, 4), torch.randn(2, 3)
make_plan("not a model", inputs, budget="1MB")  # wrong
make_plan(model, inputs, budgets=3.5)  # wrong
make_plan(model, inputs, budget="1MB", epochs="many")  # wrong
plan = make_plan(model, inputs, budget=1000)
layers: list[str] = plan.chosen  # wrong
spent: str = plan.ledger.scopes.training  # wrong
Plan.load(3)  # wrong
load_plan("plan.json").ledgers  # wrong
Engine(plan, model)  # wrong
Engine(model, plan, seed="0")  # wrong
simulate(plan, policy=3)  # wrong
trace(model, inputs, norm=True)  # wrong
SinkGD(model.parameters(), lr="fast")  # wrong
"""


def lines_told(tmp_path: Path, code: str) -> set[int]:
    """Lines of a user's file that ``mypy --strict`` finds fault with."""
    file = tmp_path / "user.py"
    file.write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path.parent / "mypy"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    return {int(number) for number in re.findall(r"^user\.py:(\d+): error", done.stdout, re.MULTILINE)}


def test_right_lines_pass(tmp_path: Path) -> None:
    assert lines_told(tmp_path, RIGHT) == set()


def test_every_wrong_line_is_told(tmp_path: Path) -> None:
    wrong = {number for number, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")}
    assert lines_told(tmp_path, WRONG) == wrong
