"""What doors export is told whole: what comes back, and an example that runs."""

import ast
import doctest
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from imports import REPOSITORY

PACKAGES = ("planner", "simulator", "engine")
STUBS = [stub for package in PACKAGES for stub in REPOSITORY.glob(f"{package}/**/__init__.pyi")]
#: What users import, by the module of its door.
USERS = ("trady.planner", "trady.simulator", "trady.engine")


def exported(stub: Path) -> Iterator[tuple[str, str]]:
    """Module of a door, and a name in it."""
    module = ".".join(("trady", *stub.parent.relative_to(REPOSITORY).parts))
    for node in ast.parse(stub.read_text()).body:
        yield from ((module, alias.name) for alias in getattr(node, "names", ()))


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every exported function and public method of exported classes."""
    for module, name in {pair for stub in STUBS for pair in exported(stub)}:
        thing = getattr(importlib.import_module(module), name)
        if inspect.isfunction(thing):
            yield f"{module}.{name}", thing
        elif inspect.isclass(thing) and thing.__module__.startswith("trady."):
            for member, method in list(vars(thing).items()):
                if inspect.isfunction(plain := getattr(method, "__func__", method)) and not member.startswith("_"):
                    yield f"{module}.{name}.{member}", plain


def test_what_comes_back_is_told() -> None:
    """One line says it by itself; longer docstrings have a section."""
    silent = []
    for name, function in functions():
        lines = (inspect.getdoc(function) or "").splitlines()
        returns = inspect.signature(function).return_annotation
        comes_back = returns not in (None, "None", NoReturn, Iterator[None], inspect.Signature.empty)
        if len(lines) > 1 and comes_back and not {"Returns:", "Yields:"} & set(lines):
            silent.append(name)
    assert not sorted(silent)


def examples() -> list[tuple[str, str]]:
    names = [pair for stub in STUBS for pair in exported(stub) if pair[0] in USERS]
    things = [(module, name, getattr(importlib.import_module(module), name)) for module, name in names]
    wanted = ("Engine", "SinkGD")
    return [(module, name) for module, name, thing in things if inspect.isfunction(thing) or name in wanted]


@pytest.mark.parametrize(("module", "name"), examples())
def test_examples_run(module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    thing = getattr(importlib.import_module(module), name)
    own = importlib.import_module(thing.__module__)
    (example,) = (found for found in doctest.DocTestFinder(recurse=False).find(thing, name, module=own))
    assert example.examples
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed == 0
