"""The rules of the house: nothing reaches past a door, and no room grows beyond what an eye can hold.

Layers and circles are import-linter's, in ``pyproject.toml``.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from imports import REPOSITORY, files_of

FILES = [path for package in ("planner", "simulator", "engine") for path in files_of(package)]
#: Words that every shelf may use: files of one room.
ROOT_WORDS = {"errors", "files", "options", "parallel", "records", "units"}


def names(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def shelf_of(module: str) -> str:
    """The package whose door others use: ``trady.planner.ledger``, ``trady.simulator``."""
    parts = module.split(".")
    depth = 2 if parts[1] == "simulator" or len(parts) < 4 else 3
    return ".".join(parts[:depth])


def module_of(path: Path) -> str:
    parts = ("trady", *path.relative_to(REPOSITORY).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("trady."):
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=names)
def test_nothing_reaches_past_a_door(path: Path) -> None:
    own = shelf_of(module_of(path) + (".door" if path.stem == "__init__" else ""))
    for module in imports_of(path):
        inside = module.split(".")[3:] or (module.split(".")[1] == "simulator" and module.split(".")[2:])
        assert not inside or shelf_of(module) == own, f"import it from {shelf_of(module)}"


@pytest.mark.parametrize("stub", sorted(REPOSITORY.glob("[pse]*/**/__init__.pyi")), ids=names)
def test_no_door_names_a_thing_as_a_room(stub: Path) -> None:
    """Once such a room were imported, it would stand where the thing did."""
    rooms = {path.stem for path in stub.parent.iterdir()}
    exported = {alias.asname for node in ast.parse(stub.read_text()).body for alias in getattr(node, "names", ())}
    assert not exported & rooms


@pytest.mark.parametrize("path", FILES, ids=names)
def test_rooms_can_be_held_in_the_eye(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = [part for part in node.body if not isinstance(part, ast.Expr) or part is not node.body[0]]
            assert node.end_lineno is not None and (not body or node.end_lineno - body[0].lineno <= 60), node.name


def test_no_shelf_is_full() -> None:
    for folder in {path.parent for path in FILES if path.is_relative_to(REPOSITORY / "planner")}:
        assert len(list(folder.glob("*.py"))) <= 16, folder


#: Where ``Any`` stays in a public signature, and why.
UNTYPED = {
    "what click parsed, by the options' names": (
        "Numbers.convert",
        "fields_of",
        "options_for",
        "plan_command",
        "profile_command",
        "study_command",
        "simulate_command",
        "train_command",
        "verify_command",
    ),
    "PyTorch's dispatcher hands over anything": (
        "Call.of",
        "Call.named",
        "Call.with_tensors",
        "fake_mixed_norm",
        "run_fake",
        "Recorder.record_operation",
        "TriggerProbes.note",
    ),
    "state dicts are PyTorch's: names and anything": (
        "Engine.state_dict",
        "Engine.load_state_dict",
        "Engine.draw_state",
        "Engine.load_draw_state",
        "EngineCallback.state_dict",
        "EngineCallback.load_state_dict",
        "CarriedState.state_dict",
        "CarriedState.load_state_dict",
        "OptimizerFollower.state_dict",
        "OptimizerFollower.load_state_dict",
        "generator_states",
        "set_generator_states",
        "find_state_dict",
    ),
    "PyTorch's own signature": ("Engine.forward", "SinkGD.step"),
    "what a name or a file stands for": ("load_factory", "resolve_name", "load_safely"),
    "fields as JSON, checked where they are read": ("History.restored", "read_definition", "MemoryCosts.of"),
    "the user's own model and loss say what they give and take": ("call_model", "step_loss"),
    "arrays of several types": ("Scratch.array",),
}


def signatures(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions and methods by name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from signatures(child, f"{prefix}{child.name}.")


def is_untyped(annotation: ast.expr) -> bool:
    quoted = (
        ast.parse(part.value)
        for part in ast.walk(annotation)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )
    trees = [annotation, *(tree for tree in quoted if isinstance(tree, ast.Module))]
    return any(isinstance(part, ast.Name) and part.id == "Any" for tree in trees for part in ast.walk(tree))


def test_any_stands_in_public_signatures_for_a_reason() -> None:
    untyped = set()
    for path in FILES:
        for name, function in signatures(ast.parse(path.read_text())):
            arguments = (part for part in ast.walk(function.args) if isinstance(part, ast.arg))
            annotations = [argument.annotation for argument in arguments] + [function.returns]
            if any(annotation is not None and is_untyped(annotation) for annotation in annotations):
                untyped.add(name)
    assert untyped == {name for names in UNTYPED.values() for name in names}


@pytest.mark.parametrize("path", FILES, ids=names)
def test_functions_take_few_arguments(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)]
            assert len([name for name in given if name not in ("self", "cls")]) <= 8, node.name


TESTED = {path.stem.removeprefix("test_") for path in files_of("tests") if path.stem.startswith("test_")}


@pytest.mark.parametrize("path", [path for path in FILES if not path.stem.startswith("__")], ids=names)
def test_every_file_has_a_test_or_says_which_holds_it(path: Path) -> None:
    said = re.findall(r"Held by ``(tests/\S+\.py)``", ast.get_docstring(ast.parse(path.read_text())) or "")
    assert path.stem in TESTED or said
    assert all((REPOSITORY / test).is_file() for test in said)
