"""What a plan says of the machine it was made on, and what is said on another one."""

import json
import warnings

import pytest
import torch
from torch import nn

from trady.engine import Engine
from trady.planner import Plan, make_plan
from trady.planner.planning.machines import machine_difference, this_machine


def planned(scope: str = "update") -> tuple[nn.Module, torch.Tensor, Plan]:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6)
    return model, inputs, make_plan(model, inputs, budget="20KB", scope=scope)


def elsewhere(plan: Plan) -> Plan:
    assert plan.settings.machine is not None
    machine = plan.settings.machine.model_copy(update={"processor": "Other 9000", "threads": 96})
    return plan.model_copy(update={"settings": plan.settings.model_copy(update={"machine": machine})})


def test_the_plan_says_where_it_was_made() -> None:
    machine = this_machine()
    assert planned()[2].settings.machine == machine
    assert machine.processor and machine.threads == torch.get_num_threads()
    assert machine.instruction_set.startswith(torch.backends.cpu.get_cpu_capability())


def test_a_cap_of_the_instruction_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert this_machine().instruction_set.endswith("oneDNN at most SSE41")


def test_a_measurement_says_what_differs_and_what_that_means() -> None:
    model, inputs, plan = planned()
    assert machine_difference(plan) == "" == Engine(model, plan).measure(inputs).machine
    model = planned()[0]
    text = str(Engine(model, elsewhere(plan)).measure(inputs)).replace("\n", " ")
    assert f"processor Other 9000, here {this_machine().processor}" in text
    assert f"threads 96, here {torch.get_num_threads()}" in text and "instruction set" not in text
    assert "Workspace and scope peak may differ, all other lines hold: plan again here" in text


def test_the_engine_warns_where_the_budget_is_of_the_peak() -> None:
    model, _, plan = planned("peak")
    with pytest.warns(UserWarning, match=r"Planned on another machine: processor Other 9000, here .*plan again here"):
        Engine(model, elsewhere(plan))
    for scope, change in (("peak", Plan.model_copy), ("update", elsewhere)):
        model, _, plan = planned(scope)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Engine(model, change(plan))


def test_plans_of_before_say_nothing_and_still_load() -> None:
    content = json.loads(planned()[2].to_json())
    del content["settings"]["machine"]
    for name in ("optimizer_held_copies", "first_always_trained_bytes"):
        del content["table"][name]
    plan = Plan.model_validate_json(json.dumps(content))
    assert plan.settings.machine is None and machine_difference(plan) == ""
