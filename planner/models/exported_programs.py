"""Open ``torch.export`` archives (``.pt2``) without running code from the file.

``torch.export.load`` unpickles some members with ``weights_only=False``, evaluates the size expressions of the program
as Python, imports what its tree specs name, resolves operators by attribute (``torch.os.system`` resolves too) and
writes argument names into generated source. So the archive is read first, and whatever is not plain tensors, known
operators and plain names needs trust.

Held by ``tests/planner/models/test_loading.py``.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from trady.planner.errors import LoadingError, UntrustedPickleError
from trady.planner.models.safe_pickles import scan_pickle, torch_default_names

_OPERATOR: Final = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed)\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+|"
    r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|invoke_subgraph)"
)
_FILE_OPERATOR: Final = re.compile(r"torch\.ops\.\w+\.(from_file|save|load)\b.*")  # operators that touch files
_PYTHON_OPERATOR: Final = re.compile(
    "add|sub|mul|truediv|floordiv|mod|pow|neg|pos|lt|le|eq|ne|gt|ge|and_|or_|xor|not_|getitem|lshift|rshift"
)
_NAME: Final = re.compile(r"[\w.]*")
_EXPRESSION_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_EXPRESSION: Final = re.compile(r"[\w\s+\-*/(),<>=!&|~]*(\d\.\d[\w\s+\-*/(),<>=!&|~]*)*")
_SYMBOL: Final = re.compile(r"[suz]+f?\d+")
_SYMBOL_CALL: Final = re.compile(r"Symbol\('[suz]+f?\d+'(, \w+=(True|False))*\)")
_EXPRESSION_FUNCTION: Final = re.compile(
    "FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|"
    "FloatPow|FloatTrueDiv|IntTrueDiv|TruncToFloat|TruncToInt|RoundToInt|ToFloat|Identity|Max|Min|Eq|Ne|Lt|Le|Gt|Ge|"
    "And|Or|Not|Add|Mul|Pow|Rational|Float|True|False|oo|int_oo|Integer|ceiling|floor"
)
_TREE_TYPES: Final = frozenset({"builtins.list", "builtins.tuple", "builtins.dict", "collections.OrderedDict"})
_PICKLES: Final = re.compile(r"(data/(sample_inputs|weights|constants)/[^/]*\.pt|serialized_\w+\.(pt|json))")
_LEGACY_PROGRAM: Final = "serialized_exported_program.json"


def is_exported_program(path: Path) -> bool:
    """Whether a file is an archive of ``torch.export.save``, whatever its name ends with."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name == _LEGACY_PROGRAM or re.fullmatch(r"[^/]+/models/[^/]+\.json", name) for name in names)


def load_exported_program(path: Path, trust_pickle: bool) -> torch.export.ExportedProgram:
    """Read a ``torch.export`` archive.

    Raises:
        LoadingError: It is damaged, or of another version of the format.

    Error:
        UntrustedPickleError: It holds more than plain tensors and known operators, and is not trusted.
    """
    if not trust_pickle:
        _check_archive(path)
    try:
        with path.open("rb") as file:
            return torch.export.load(io.BytesIO(file.read()))
    except Exception as error:
        raise LoadingError(
            f"{path} is not an archive torch {torch.__version__} can read: {error}. "
            "Export the model again with torch.export.save."
        ) from error


def _check_archive(path: Path) -> None:
    unique = list(dict.fromkeys(finding for name, data in _members(path) for finding in _findings(name, data)))
    if unique:
        raise UntrustedPickleError(
            f"{path} holds more than tensors and operators, so it was not opened: {'; '.join(unique[:8])}. "
            "Give --trust-pickle only if you trust where the file comes from (it can run any code).",
            unique,
        )


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Members as torch's reader sees them, and as Python's does, which torch uses for older archives."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inner = name if name.startswith("serialized_") else name.partition("/")[2]
            yield inner, archive.read(name) if _is_read(inner) else b""
    try:
        reader = torch._C.PyTorchFileReader(str(path))
    except RuntimeError:
        return
    for name in reader.get_all_records():
        yield name, reader.get_record(name) if _is_read(name) else b""


def _is_read(name: str) -> bool:
    """Everything but raw tensors."""
    return name.endswith(".json") or bool(_PICKLES.fullmatch(name))


def _findings(name: str, data: bytes) -> Iterator[str]:
    try:
        if name.startswith("data/aotinductor/") or name.endswith((".so", ".pyd", ".dll")):
            yield f"compiled code {name}"
        elif name == _LEGACY_PROGRAM or re.fullmatch(r"models/.+\.json", name):
            yield from _program_findings(json.loads(data))
        elif _PICKLES.fullmatch(name):
            yield from _pickle_findings(name, data)
        elif name.endswith("_config.json"):
            yield from _payload_findings(json.loads(data))
    except (ValueError, AttributeError):
        yield f"unreadable {name}"


def _pickle_findings(name: str, data: bytes) -> Iterator[str]:
    """Torch falls back to the unsafe unpickler when the safe one fails, so the safe one must not fail."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        listed = sorted(_foreign_names(data))
        yield f"pickled payload {name}" + (f" naming {', '.join(listed)}" if listed else "")


def _foreign_names(data: bytes) -> set[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            pickles = [inner.read(name) for name in inner.namelist() if name.endswith("/data.pkl")]
        return {name for part in pickles for name in scan_pickle(part).names} - torch_default_names()
    except (zipfile.BadZipFile, ValueError):
        return set()


def _payload_findings(config: dict[str, Any]) -> Iterator[str]:
    for name, payload in config.get("config", {}).items():
        if payload.get("use_pickle") or str(payload.get("path_name", "")).startswith(("custom_obj", "opaque_obj")):
            yield f"pickled payload {payload.get('path_name')} for {name!r}"


def _program_findings(program: Any, key: str = "") -> Iterator[str]:
    """Strings of a program that torch would evaluate, import, resolve or write into source."""
    if isinstance(program, dict):
        for name, value in program.items():
            if name in ("metadata", "guards_code"):  # descriptive text; guards are not compiled here
                continue
            if not _NAME.fullmatch(name):
                yield f"name {name!r}"
            yield from _program_findings(value, name)
    elif isinstance(program, list):
        for value in program:
            yield from _program_findings(value, key)
    elif isinstance(program, str):
        yield from _text_findings(key, program)


def _text_findings(key: str, text: str) -> Iterator[str]:
    if key in ("target", "as_operator"):
        if not _is_known_operator(text):
            yield f"operator {text!r}"
    elif key == "expr_str":
        if not _is_plain_expression(text):
            yield f"expression {text!r}"
    elif key in ("in_spec", "out_spec", "treespec_str") or text.startswith("[1, {"):
        yield from (f"tree type {name!r}" for name in _tree_types(text) if name not in _TREE_TYPES)
    elif key not in ("as_string", "as_strings", "device", "torch_version") and not _NAME.fullmatch(text):
        yield f"name {text!r}"


def _is_known_operator(target: str) -> bool:
    if "__" in target or not _OPERATOR.fullmatch(target) or _FILE_OPERATOR.match(target):
        return False
    return not target.startswith("_operator.") or bool(_PYTHON_OPERATOR.fullmatch(target.split(".")[1]))


def _is_plain_expression(text: str) -> bool:
    text = _SYMBOL_CALL.sub("s0", text)
    words = _EXPRESSION_WORD.findall(text)
    return bool(_EXPRESSION.fullmatch(text)) and all(map(_is_expression_word, words))


def _is_expression_word(word: str) -> bool:
    return bool(_SYMBOL.fullmatch(word) or _EXPRESSION_FUNCTION.fullmatch(word))


def _tree_types(text: str) -> Iterator[str]:
    """Container types a tree spec names, with the contexts that would import something."""
    try:
        _, spec = json.loads(text)
    except ValueError:
        yield text[:60]
        return
    waiting = [spec]
    while waiting:
        node = waiting.pop()
        if node.get("type") is not None:
            yield str(node["type"])
        if "enum" in str(node.get("context", "")) or "module" in str(node.get("context", "")):
            yield f"{node.get('type')} with {node['context']}"
        waiting.extend(node.get("children_spec", []))
