"""The peak under every instruction set that oneDNN knows and the machine has, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from cases import TOYS, UNDRAWN

_TESTS = Path(__file__).resolve().parents[1]
#: Instruction sets of ``ONEDNN_MAX_CPU_ISA`` -> what PyTorch calls a machine that has them.
_NEEDED: Final = {
    "SSE41": ("DEFAULT", "NO AVX", "AVX2", "AVX512"),
    "AVX2": ("AVX2", "AVX512"),
    "AVX512_CORE": ("AVX512",),
}
_QUICK = ("branches", "conv-bn-relu", "grouped", "transposed")
#: As in ``test_peak.py``.
_BYTES_ABOVE: Final = {"cross-attention": 32}
#: Tests that measure kernels.
_MEASURING = (
    "integration/test_peak.py",
    "planner/costs/test_allocator.py",
    "planner/lean/test_kernels.py",
    "planner/ledger/test_peak.py",
    "planner/studies/test_runs.py",
)


def sets_here() -> list[str | None]:
    """Those that the machine has: a cap above it changes nothing."""
    capability = torch.backends.cpu.get_cpu_capability()
    found = [name for name, needed in _NEEDED.items() if capability in needed]
    print("Instruction sets run:", ", ".join([*found, "the machine's own"]))
    return [*found, None]


def environment(name: str | None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
    paths = [str(_TESTS), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)} | ({} if name is None else {"ONEDNN_MAX_CPU_ISA": name})


def ledgers(toys: list[str], instruction_set: str | None) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("toy_peaks.py")), *toys]
    ran = subprocess.run(command, env=environment(instruction_set), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "toys",
    [pytest.param(_QUICK, id="few"), pytest.param(sorted(TOYS.keys() - UNDRAWN), id="all", marks=pytest.mark.slow)],
)
def test_the_peak_is_above_and_all_other_lines_are_one(toys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sets = sets_here()
    by_set = {name: ledgers(toys, name) for name in sets}
    for toy in toys:
        for found in (by_set[name][toy] for name in sets):
            above = _BYTES_ABOVE.get(toy, 0)
            assert found["measured_peak"] <= found["predicted_peak"] + above, toy
            assert found["predicted_peak"] <= found["measured_peak"] / 0.97 + 1024, toy
            assert found["lines"] == by_set[None][toy]["lines"]
            assert found["measured"] == by_set[None][toy]["measured"] == found["lines"]


@pytest.mark.slow
@pytest.mark.parametrize("name", _NEEDED)
def test_whatever_measures_kernels_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name not in sets_here():
        pytest.skip(f"the machine has no {name}")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not assets and not gpu and not browser"]
    ran = subprocess.run(
        [*command, *(str(_TESTS / path) for path in _MEASURING)],
        env=environment(name),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
