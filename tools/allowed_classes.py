"""Regenerate the list: ``python tools/allowed_classes.py > planner/models/allowed_classes.txt``.

A name is listed when all of this holds:

* it is a class defined at the top level of a module of ``torch.nn.modules``, ``torchvision.models``,
  ``torchvision.ops``, ``timm.models``, ``timm.layers`` or ``transformers`` (model and configuration files), under its
  own name: never a function, never an alias;
* it is an ``nn.Module``, a transformers configuration, an ``Enum`` those packages define, or one of the few data
  classes named in ``safe_pickles.INERT_CLASSES``;
* opening a pickle of it runs only reviewed code: its ``__new__`` and ``__setstate__`` are Python's or torch.nn's,
  and it has no ``__del__`` (constructors are never run, see ``safe_pickles.py``);
* it does not generate code (``torch.fx``, TorchScript), nor start processes (``torch.nn.parallel``);
* none of its methods calls one of ``FORBIDDEN_CALLS``: what loads files, downloads, or evaluates text stays out.
"""

import ast
import enum
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn

from trady.planner.models.safe_pickles import INERT_CLASSES

PACKAGES = (
    "torch.nn.modules",
    "torchvision.models",
    "torchvision.ops",
    "timm.layers",
    "timm.models",
    "transformers.models",
)
MODULES = ("transformers.activations", "transformers.pytorch_utils")
SKIPPED = ("convert_", "tokeniz", "processing", "modular_", "__main__", "_features_fx", "feature_extraction", "_api")
FORBIDDEN_CALLS = re.compile(
    "open|eval|exec|compile|__import__|import_module|system|popen|run|Popen|load|load_from_file|from_pretrained|"
    "hf_hub_download|cached_file|snapshot_download|urlopen|load_state_dict_from_url|load_file|torch_load|remove|unlink|"
    "rmtree|rename|mkdir|makedirs|write_text|write_bytes|urlretrieve|savez|tofile|to_file|get_kernel"
)
BANNED_BASES = (torch.jit.ScriptModule, torch.fx.GraphModule, nn.modules.lazy.LazyModuleMixin)


def modules_of(package_name: str) -> Iterator[ModuleType]:
    """Every importable module of a package that can define layers or configurations."""
    package = importlib.import_module(package_name)
    yield package
    for info in pkgutil.walk_packages(package.__path__, package_name + ".", onerror=lambda name: None):
        if not any(part in info.name for part in SKIPPED):
            try:
                yield importlib.import_module(info.name)
            except Exception as error:  # optional dependencies of some models
                print(f"skipped {info.name}: {error}", file=sys.stderr)


def is_wanted(item: type) -> bool:
    """Module, configuration or enum."""
    from transformers import PreTrainedConfig

    return issubclass(item, nn.Module | PreTrainedConfig | enum.Enum) and not issubclass(item, BANNED_BASES)


def opens_quietly(item: type) -> bool:
    """Whether making an instance without its constructor runs only Python's and torch.nn's code."""
    if issubclass(item, enum.Enum):
        return "_missing_" not in vars(item)
    for base in item.__mro__:
        reviewed = base is object or base.__module__.startswith("torch.nn.modules.")
        if not reviewed and {"__new__", "__setstate__", "__del__"} & vars(base).keys():
            return False
    return True


def forbidden_callers(module: ModuleType) -> set[str]:
    """Classes of a module with a method that calls what reads, writes, downloads or evaluates."""
    if module.__name__.startswith("torch.nn.modules"):
        return set()
    classes = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if any(map(_is_forbidden, ast.walk(node)))}


def _is_forbidden(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and bool(FORBIDDEN_CALLS.fullmatch(_called_name(node)))


def _called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def allowed_in(module: ModuleType) -> Iterator[str]:
    """Exact names of the classes of one module that pass every rule."""
    forbidden = forbidden_callers(module)
    for name, item in vars(module).items():
        if not isinstance(item, type) or item.__module__ != module.__name__ or item.__qualname__ != name:
            continue
        if is_wanted(item) and opens_quietly(item):
            if name in forbidden:
                print(f"left out {module.__name__}.{name}", file=sys.stderr)
            else:
                yield f"{module.__name__}.{name}"


def find_classes() -> list[str]:
    """The whole list, sorted."""
    found: set[Any] = set(INERT_CLASSES)
    for module_name in MODULES:
        found |= set(allowed_in(importlib.import_module(module_name)))
    for package_name in PACKAGES:
        for module in modules_of(package_name):
            found |= set(allowed_in(module))
    return sorted(found)


if __name__ == "__main__":
    print("# Made by tools/allowed_classes.py, which says what may stand here.")
    print("\n".join(find_classes()))
