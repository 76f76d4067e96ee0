"""What of a machine decides how much memory kernels work in."""

import os
import platform
from pathlib import Path
from typing import Final

import torch

from trady.planner.plan import MachineRecord, Plan

_CPU_INFO: Final = Path("/proc/cpuinfo")
#: What caps oneDNN's instruction set, the newer name first.
_CAPS: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def this_machine() -> MachineRecord:
    """Processor, instruction set and threads of this process."""
    cap = next((os.environ[name] for name in _CAPS if os.environ.get(name)), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return MachineRecord(
        processor=_processor(),
        instruction_set=f"{capability}, oneDNN at most {cap}" if cap else capability,
        threads=torch.get_num_threads(),
    )


def machine_difference(plan: Plan) -> str:
    """What differs on this machine from the planned one, in one line; empty where nothing does, or nothing is known."""
    planned, here = plan.settings.machine, this_machine()
    if planned is None or planned == here or plan.settings.device != "cpu":
        return ""
    differing = "; ".join(
        f"{name.replace('_', ' ')} {value}, here {getattr(here, name)}"
        for name, value in planned
        if value != getattr(here, name)
    )
    return (
        f"Planned on another machine: {differing}. Workspace and scope peak may differ, all other lines hold: "
        "plan again here to know the peak."
    )


def _processor() -> str:
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
