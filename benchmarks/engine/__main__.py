"""Bytes and time of a training step, Trady's beside those of other ways to save memory.

    python -m benchmarks.engine                                    # what is missing in benchmarks/results/engine.json
    python -m benchmarks.engine --model ViT-S --row trady --fresh
    python -m benchmarks.engine --markdown docs/engine.md          # only the table, of what is there

Each row runs in a process of its own and takes its steps in turn with dense ones. Rows of memsave_torch and PaCA need
their authors' code: ``--memsave`` (github.com/plutonium-239/memsave_torch), ``--paca`` (``peft/src`` of
github.com/WooSunghyeon/paca).
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
import torch

from benchmarks.commands import command, machine
from benchmarks.engine.models import Subject, subjects
from benchmarks.engine.rivals import rows
from benchmarks.engine.table import table_lines

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results" / "engine.json"
ROOM: Final = ROOT / "out" / "engine"

#: Threads that wait sleep: CPU time is work, and neighbours on the machine disturb less.
_WAITING: Final = {"OMP_WAIT_POLICY": "PASSIVE"}

Found = dict[str, Any]


@click.command()
@click.option("--model", default="", help="Models whose name contains this text.")
@click.option("--row", default="", help="Rows whose name contains this text.")
@click.option("--repeats", default=5, show_default=True, help="Timed steps of a row, each beside a dense one.")
@click.option("--fresh", is_flag=True, help="Measure again the rows that are there; with no --row, plan again too.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=int, help="Threads of torch; its own choice by default.")
@click.option("--timeout", default=900, show_default=True, help="Seconds of one row.")
@click.option("--memsave", envvar="MEMSAVE", help="Folder that holds memsave_torch.  [env: MEMSAVE]")
@click.option("--paca", envvar="PACA", help="Folder that holds PaCA's fork of peft.  [env: PACA]")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here and measure nothing.")
def main(
    model: str,
    row: str,
    repeats: int,
    fresh: bool,
    device: str,
    threads: int | None,
    timeout: int,
    memsave: str | None,
    paca: str | None,
    markdown: Path | None,
) -> None:
    """Measure what is missing; example: python -m benchmarks.engine --model MobileNetV2 --row frozen."""
    if markdown is not None:
        markdown.write_text("\n".join(table_lines(_read())) + "\n")
        return
    if threads:
        torch.set_num_threads(threads)
    runner = Runner(device, threads, timeout, repeats, _options(memsave=memsave, paca=paca))
    for subject in subjects():
        if model in subject.name:
            wanted = [name for name in rows(subject) if row in name]
            runner.run(subject, wanted, fresh=fresh, plan_again=fresh and not row)


def _options(**paths: str | None) -> list[str]:
    return [text for name, path in paths.items() if path for text in (f"--{name}", str(Path(path).resolve()))]


class Runner:
    """Runs rows in processes of their own and writes down each at once.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: Threads of torch; ``None`` leaves its own choice.
        timeout: Seconds of one row.
        repeats: Timed steps of a row.
        options: More options of a row.
    """

    def __init__(self, device: str, threads: int | None, timeout: int, repeats: int, options: list[str]) -> None:
        self._device, self._timeout = device, timeout
        self._command = [
            sys.executable,
            "-m",
            "benchmarks.engine.rows",
            *(["--threads", str(threads)] if threads else []),
        ]
        self._row_options = ["--repeats", str(repeats), *options]
        self._orders = {subject.name: list(rows(subject)) for subject in subjects()}

    def run(self, subject: Subject, wanted: list[str], *, fresh: bool, plan_again: bool) -> None:
        """Measure the wanted rows of a model that are missing."""
        room = ROOM / self._device / subject.name
        known = _read().get(self._device, {}).get("models", {}).get(subject.name, {"rows": {}})
        missing = [name for name in wanted if fresh or not _is_measured(known["rows"].get(name))]
        if not missing:
            return
        if plan_again or not (room / "facts.json").is_file() or not known.get("facts"):
            shutil.rmtree(room, ignore_errors=True)
            facts = self._call("facts", subject.name, "--room", str(room))
            self._write(subject.name, facts=facts)
            if "error" in facts:
                return
        for name in missing:
            found = self._call("row", subject.name, name, "--room", str(room), *self._row_options)
            self._write(subject.name, measured={name: found})
            click.echo(f"{subject.name:16} {name:26} {_short(found)}", err=True)

    def _call(self, *arguments: str) -> Found:
        """The last line of a worker's output, or what went wrong."""
        command = [*self._command, *arguments, "--device", self._device]
        started = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=self._timeout,
                check=False,
                env=os.environ | _WAITING,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {self._timeout} s"}
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            last = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
            return {"error": last[0]}
        found: Found = json.loads(lines[-1])
        return found | {"wall_seconds": round(time.perf_counter() - started, 1)}

    def _write(self, name: str, *, facts: Found | None = None, measured: Found | None = None) -> None:
        document = _read()
        run = document.setdefault(self._device, {"models": {}})
        run |= {"command": command(), **_machine(self._device)}
        model = run["models"].setdefault(name, {"facts": {}, "rows": {}})
        if facts is not None:
            model |= {"facts": facts, "rows": {}}
        model["rows"] = _ordered(model["rows"] | (measured or {}), self._orders[name])
        run["models"] = _ordered(run["models"], list(self._orders))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def _ordered(found: Found, order: list[str]) -> Found:
    """Entries in a given order; those it does not name are of an older version and go."""
    return {name: found[name] for name in order if name in found}


def _is_measured(row: Found | None) -> bool:
    """Whether a row has figures; errors and skipped rows are tried again."""
    return row is not None and "peak_bytes" in row


def _read() -> Found:
    found: Found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def _machine(device: str) -> Found:
    processor = platform.processor()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        names = [line.split(":", 1)[1].strip() for line in described.read_text().splitlines() if "model name" in line]
        processor = f"{names[0]}, {len(names)} cores" if names else processor
    found = machine() | {"processor": processor, "threads": torch.get_num_threads(), "peft": _version("peft")}
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _short(found: Found) -> str:
    if "peak_bytes" not in found:
        return str(found.get("error") or found.get("skipped"))
    kept = "-" if found["kept_bytes"] is None else f"{found['kept_bytes'] / 1e6:.1f}"
    return f"peak {found['peak_bytes'] / 1e6:.1f} MB, kept {kept} MB, {found['time_over_dense']:.2f} of dense time"


if __name__ == "__main__":
    main()
