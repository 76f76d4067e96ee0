"""The rows of the benchmark: how each way to train is set up for a model.

Code of others is run beside and never committed: ``memsave_torch`` (github.com/plutonium-239/memsave_torch) and
PaCA's fork of peft (github.com/WooSunghyeon/paca, folder ``peft/src``) lie where the user says.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.engine.models import Subject
from trady.planner.models import call_model, set_training_mode
from trady.planner.options import NormMode
from trady.planner.plan import Plan

#: Budgets in scope ``update``; the last is a share of what fine-tuning everything stores and computes for weights.
BUDGETS: Final = ("256KB", "1MB", "5%")
#: Name of the plan in scope ``peak``.
PEAK: Final = "peak"
LEARNING_RATE: Final = 1e-3


class CannotRunError(Exception):
    """A row that does not exist for this model or on this machine; the reason goes into the table."""


@dataclass(frozen=True)
class Task:
    """What a row starts from.

    Args:
        subject: The model's description.
        model: The module, in training mode with frozen norms, every parameter trainable.
        inputs: Of the batch.
        plans: Budget -> plan.
        paths: ``memsave`` and ``paca`` -> where their code lies.
    """

    subject: Subject
    model: nn.Module
    inputs: Any
    plans: Mapping[str, Plan]
    paths: Mapping[str, Path]


@dataclass(frozen=True)
class Contender:
    """A row ready to train.

    Args:
        model: What is called.
        optimizer: Over everything that trains.
        trained: Names and tensors of what trains.
        compiled: Whether the saved tensors are hidden from autograd's hooks.
        resample: Draws the channels of an epoch; ``None`` where nothing is drawn.
        note: What the reader should know.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    trained: Mapping[str, Tensor]
    compiled: bool = False
    resample: Callable[[int], object] | None = None
    note: str = ""


Prepare = Callable[[Task], Contender]


def rows(subject: Subject) -> dict[str, Prepare]:
    """Name -> set-up, in the order of the table."""
    found: dict[str, Prepare] = {"dense": dense, "dense, norms trained": dense_with_norms, "checkpoint": checkpointed}
    for share in (0.5, 0.2, 0.05):
        found[f"compile {share}"] = functools.partial(compiled, share=share)
    for budget in BUDGETS:
        found[f"frozen {budget}"] = functools.partial(frozen, budget=budget)
    found[f"frozen {BUDGETS[0]}, checkpoint"] = functools.partial(frozen_checkpointed, budget=BUDGETS[0])
    found[f"frozen {BUDGETS[0]}, compile 0.2"] = functools.partial(frozen_compiled, budget=BUDGETS[0], share=0.2)
    for name, prepare in (("memsave", memsave), ("lora", lora), ("paca", paca), ("trady", trady)):
        for budget in BUDGETS:
            found[f"{name} {budget}"] = functools.partial(prepare, budget=budget)
    found[f"trady {BUDGETS[0]}, checkpoint"] = functools.partial(trady_checkpointed, budget=BUDGETS[0])
    if not subject.like_relu:
        found["trady peak"] = functools.partial(trady, budget=PEAK)
    return found


def dense(task: Task) -> Contender:
    """Everything trains; norms normalise with their running statistics."""
    return _contender(task.model)


def dense_with_norms(task: Task) -> Contender:
    """Everything trains, running statistics too."""
    if not any(getattr(module, "running_mean", None) is not None for module in task.model.modules()):
        raise CannotRunError("no norm has running statistics: the same as dense")
    return _contender(set_training_mode(task.model, NormMode.TRAIN))


def checkpointed(task: Task) -> Contender:
    """Everything trains; each block is computed again in backward."""
    _checkpoint_blocks(task)
    return _contender(task.model)


def compiled(task: Task, share: float) -> Contender:
    """Everything trains; torch's partitioner keeps a share of what it would keep."""
    return _compiled(_contender(task.model), share)


def frozen(task: Task, budget: str) -> Contender:
    """What a user does without Trady: the layers Trady draws from train whole, with the head; the rest is frozen."""
    plan = _plan(task, budget)
    chosen = {layer.weight_name for layer in plan.table.layers if layer.name in plan.chosen}
    _freeze(task.model, plan, chosen)
    return _contender(task.model)


def frozen_checkpointed(task: Task, budget: str) -> Contender:
    """The same with every block computed again in backward."""
    contender = frozen(task, budget)
    _checkpoint_blocks(task)
    return contender


def frozen_compiled(task: Task, budget: str, share: float) -> Contender:
    """The same, compiled with a memory budget."""
    return _compiled(frozen(task, budget), share)


def memsave(task: Task, budget: str) -> Contender:
    """The same, the modules replaced by memsave_torch's."""
    layers = _beside(task, "memsave", "memsave_torch.nn")
    frozen(task, budget)
    model = layers.convert_to_memory_saving(task.model, dropout=False)  # its own fails: it passes a method as a flag
    _share_tensors(model, task.model)
    names = sorted({type(module).__name__ for module in model.modules() if "MemSave" in type(module).__name__})
    if not names:
        raise CannotRunError("memsave_torch replaces no module of this model")
    return _contender(model, note=f"replaced: {', '.join(name.removeprefix('MemSave') for name in names)}")


def lora(task: Task, budget: str) -> Contender:
    """Adapters on the layers Trady draws from, of ranks that make as many trainable elements; the head trains."""
    peft = importlib.import_module("peft")
    plan = _plan(task, budget)
    shares = {}
    for name, module in _called(task):
        if name in plan.chosen and (isinstance(module, nn.Linear) or _is_plain_convolution(module)):
            shares[name] = module.get_parameter("weight")[:, :1].numel() * plan.chosen[name]
    if not shares:
        raise CannotRunError("LoRA has no adapter for any layer that Trady draws from")
    ranks = _ranks(shares, {name: _elements_of_rank(task.model.get_submodule(name)) for name in shares}, plan)
    config = peft.LoraConfig(r=1, lora_dropout=0.0, target_modules=list(ranks), rank_pattern=ranks)
    return _with_adapters(task, plan, peft.inject_adapter_in_model(config, task.model), len(ranks), "lora_")


def paca(task: Task, budget: str) -> Contender:
    """PaCA on the linear layers Trady draws from, as many input channels of each; the head trains."""
    peft = _beside(task, "paca", "peft", "peft 0.21 has no PaCA; its authors' fork is not at --paca")
    if not hasattr(peft, "PacaConfig"):
        raise CannotRunError(f"{peft.__file__} has no PaCA")
    plan = _plan(task, budget)
    ranks = {
        name: plan.chosen[name] for name, module in _called(task) if name in plan.chosen and type(module) is nn.Linear
    }
    if not ranks:
        raise CannotRunError("PaCA trains linear layers only, and Trady draws from none here")
    config = peft.PacaConfig(r=1, target_modules=list(ranks), rank_pattern=ranks)
    return _with_adapters(task, plan, peft.inject_adapter_in_model(config, task.model), len(ranks), "paca_w")


def trady(task: Task, budget: str) -> Contender:
    """Trady's engine."""
    plan = _plan(task, budget)
    try:
        engine = importlib.import_module("trady.engine").Engine(task.model, plan, seed=0)
    except (ImportError, AttributeError) as error:
        raise CannotRunError(f"the engine is not there: {error}") from error
    engine.train()
    optimizer = engine.register(torch.optim.SGD(engine.parameters(), lr=LEARNING_RATE))
    note = f"{len(plan.chosen)} layers, {sum(plan.counts):,} channels, update {plan.ledger.scopes.update:,} B"
    return Contender(engine, optimizer, dict(engine.named_parameters()), resample=engine.resample, note=note)


def trady_checkpointed(task: Task, budget: str) -> Contender:
    """The engine on a model that computes each block again in backward."""
    _checkpoint_blocks(task)
    return trady(task, budget)


def _contender(model: nn.Module, note: str = "") -> Contender:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return Contender(model, torch.optim.SGD(trained.values(), lr=LEARNING_RATE), trained, note=note)


def _share_tensors(model: nn.Module, original: nn.Module) -> None:
    """Let a copy use the tensors of its original: its own are free, as if the user had dropped the original."""
    own = {**dict(original.named_parameters()), **dict(original.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data = own[name].data


def _compiled(contender: Contender, share: float) -> Contender:
    torch._functorch.config.activation_memory_budget = share
    model: Any = torch.compile(contender.model)
    return Contender(model, contender.optimizer, contender.trained, compiled=True)


def _checkpoint_blocks(task: Task) -> None:
    names = list(task.subject.block_names(task.model))
    if not names:
        raise CannotRunError(f"no module is named like {task.subject.blocks}")
    for name in names:
        block: Any = task.model.get_submodule(name)
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _plan(task: Task, budget: str) -> Plan:
    if budget not in task.plans:
        raise CannotRunError(f"no plan for {budget}")
    return task.plans[budget]


def _freeze(model: nn.Module, plan: Plan, trained: set[str]) -> None:
    """Freeze all but the given parameters and the head."""
    heads = tuple(f"{name}." for name in plan.model.head.layers)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained or name.startswith(heads))


def _with_adapters(task: Task, plan: Plan, model: nn.Module, number: int, infix: str) -> Contender:
    """Adapters and head train."""
    heads = tuple(f"{name}." for name in plan.model.head.layers)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(infix in name or name.startswith(heads))
    contender = _contender(model)
    got = sum(tensor.numel() for name, tensor in contender.trained.items() if infix in name)
    share = got / _drawn_elements(plan)
    note = f"{number} of {len(plan.chosen)} layers, {share:.0%} of Trady's trainable elements"
    return Contender(model, contender.optimizer, contender.trained, note=note)


def _drawn_elements(plan: Plan) -> int:
    return sum(layer.weight_elements * count for layer, count in zip(plan.table.layers, plan.counts, strict=True))


def _ranks(shares: Mapping[str, int], elements: Mapping[str, int], plan: Plan) -> dict[str, int]:
    """Ranks in proportion to what Trady trains of each layer, their elements together as near to its as can be.

    Args:
        shares: Layer -> elements Trady trains of it.
        elements: Layer -> elements of an adapter of rank 1.
        plan: Trady's.
    """
    wanted = _drawn_elements(plan)

    def scaled(factor: float) -> dict[str, int]:
        return {name: max(1, round(factor * share / elements[name])) for name, share in shares.items()}

    def distance(ranks: Mapping[str, int]) -> int:
        return abs(sum(rank * elements[name] for name, rank in ranks.items()) - wanted)

    even = wanted / sum(shares.values())
    return min((scaled(even * percent / 100) for percent in range(50, 151)), key=distance)


def _is_plain_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == 1


def _elements_of_rank(module: nn.Module) -> int:
    """Trainable elements of an adapter of rank 1: the kernel is on the side of the input."""
    weight: Any = module.weight
    elements: int = weight[0].numel() + weight.shape[0]
    return elements


def _called(task: Task) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose own forward is called; an adapter on another would never be reached."""
    called: set[nn.Module] = set()
    handles = [module.register_forward_hook(lambda module, *_: called.add(module)) for module in task.model.modules()]
    try:
        with torch.no_grad():
            call_model(task.model, task.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return ((name, module) for name, module in task.model.named_modules() if module in called)


def _beside(task: Task, name: str, module: str, missing: str = "") -> Any:
    """Import code that lies outside the repository."""
    if name not in task.paths:
        raise CannotRunError(missing or f"{module} is not at --{name}")
    sys.path.insert(0, str(task.paths[name]))
    return importlib.import_module(module)
