"""Open pickled modules without running code from the file.

Three locks, all before or inside ``torch.load(weights_only=True)``:

1. Every name in the pickle is one of torch's own defaults, or an exact name of ``allowed_classes.txt`` (classes only).
2. No constructor runs: a module comes back through ``__new__`` and its state, so ``__init__`` with arguments
   from a file is refused. Enum members are the exception, they are looked up by calling the class.
3. A function that a module keeps as an attribute (``self.act = F.gelu``) is a stand-in while the pickle is open,
   put back by name afterwards, and only where it is one of a few pure activation functions.
"""

import enum
import functools
import importlib
import importlib.resources
import pickletools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

import torch
from torch import nn

from trady.planner.errors import LoadingError, UntrustedPickleError

PARTIAL_NAME: Final = "functools.partial"
ACTIVATION_NAMES: Final = (
    "torch._C._nn.gelu",
    "torch.nn.functional.relu",
    "torch.nn.functional.silu",
    "torch.nn.functional.relu6",
    "torch.nn.functional.leaky_relu",
    "torch.nn.functional.hardswish",
    "timm.layers.activations.gelu",
)
INERT_CLASSES: Final = (
    "torchvision.models.detection._utils.BalancedPositiveNegativeSampler",
    "torchvision.models.detection._utils.BoxCoder",
    "torchvision.models.detection._utils.BoxLinearCoder",
    "torchvision.models.detection._utils.Matcher",
    "torchvision.models.detection._utils.SSDMatcher",
    "transformers.generation.configuration_utils.GenerationConfig",
)
_EXTRA_OF_PACKAGE: Final = {"torchvision": "vision", "timm": "vision", "transformers": "text"}
_HOOK_TABLES: Final = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)


@dataclass
class PickleScan:
    """What a pickle would do, read without doing it.

    Args:
        names: Every ``module.name`` it refers to.
        constructed: Those it would call, or hand to something it calls.
    """

    names: set[str] = field(default_factory=set)
    constructed: set[str] = field(default_factory=set)


@dataclass(eq=False)
class _Value:
    """One value on the pickle's stack, as far as the scan knows it."""

    text: str | None = None
    name: str | None = None
    parts: "list[_Value]" = field(default_factory=list)


class _PartialRecipe:
    """Stands in for ``functools.partial`` while a pickle is open; cannot be called."""

    def __init__(self, function: Any = None) -> None:
        self.function = function
        self.args: tuple[Any, ...] = ()
        self.keywords: dict[str, Any] = {}

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.function, self.args, self.keywords = state[0], tuple(state[1]), dict(state[2] or {})


@dataclass(frozen=True)
class _ActivationMark:
    """Stands in for a pure activation function while a pickle is open; cannot be called."""

    name: str


@functools.cache
def allowed_names() -> frozenset[str]:
    """The exact class names a pickle may refer to."""
    text = importlib.resources.files("trady.planner.models").joinpath("allowed_classes.txt").read_text("utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


def resolve_name(name: str) -> Any:
    """Import the object an allow-listed name stands for.

    Raises:
        LoadingError: Its package is missing, or this version of it has no such class.
    """
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        package = module_name.split(".")[0]
        extra = _EXTRA_OF_PACKAGE.get(package)
        way_out = f'pip install "trady[{extra}]"' if extra else f"pip install {package}"
        raise LoadingError(f"The file needs {name}, which cannot be imported ({error}). Try: {way_out}.") from error
    except AttributeError:
        raise LoadingError(
            f"The file needs {name}, which the installed {module_name.split('.')[0]} does not have. "
            "Install the version it was saved with, or save a state dict and give --arch."
        ) from None


def scan_pickle(data: bytes | BinaryIO) -> PickleScan:
    """Follow a pickle's instructions without carrying them out; a file is read up to the end of one pickle.

    Error:
        ValueError: The bytes are not a pickle, or end too early.
    """
    return _Scanner().run(pickletools.genops(data))


class _Scanner:
    """A pickle machine whose values are only names and containers."""

    def __init__(self) -> None:
        self.found = PickleScan()
        self.stack: list[_Value | None] = []  # None is a mark
        self.memo: dict[int, _Value] = {}

    def run(self, operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> PickleScan:
        for opcode, argument, _ in operations:
            try:
                self._step(opcode, argument)
            except (IndexError, KeyError, AttributeError) as error:
                raise ValueError(f"the pickle's instruction {opcode.name} has nothing to work on") from error
        return self.found

    def _step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        handlers: dict[str, Callable[[], None]] = {
            "GLOBAL": lambda: self._push_name(*argument.split(" ", 1)),
            "STACK_GLOBAL": self._stack_global,
            "INST": lambda: self._instance(argument),
            "REDUCE": self._reduce,
            "OBJ": self._object,
            "NEWOBJ": self._new_object,
            "NEWOBJ_EX": self._new_object,
            "MARK": lambda: self.stack.append(None),
            "DUP": lambda: self.stack.append(self.stack[-1]),
            "MEMOIZE": lambda: self._remember(len(self.memo)),
        }
        if opcode.name in handlers:
            handlers[opcode.name]()
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._remember(argument)
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
            self._fill(opcode)
        else:
            self._default(opcode, argument)

    def _remember(self, index: int) -> None:
        value = self.stack[-1]
        if value is not None:
            self.memo[index] = value

    def _push_name(self, module: str, name: str) -> None:
        full_name = _modern_name(module, name)
        self.found.names.add(full_name)
        self.stack.append(_Value(name=full_name))

    def _stack_global(self) -> None:
        module, name = self._pop(2)
        self._push_name(module.text or "?", name.text or "?")

    def _instance(self, argument: str) -> None:
        self._push_name(*argument.split(" ", 1))
        function = self._pop(1)[0]
        self._call(function, self._pop_to_mark())

    def _object(self) -> None:
        function, *arguments = self._pop_to_mark()
        self._call(function, arguments)

    def _reduce(self) -> None:
        function, arguments = self._pop(2)
        self._call(function, [arguments])

    def _call(self, function: _Value, arguments: list[_Value]) -> None:
        names = {function.name} if function.name else set()
        if function.name != PARTIAL_NAME:
            names |= {value.name for value in _reachable(arguments) if value.name}
        self.found.constructed |= names
        self.stack.append(_Value(parts=arguments))

    def _new_object(self) -> None:
        _, arguments = self._pop(2)
        self.stack.append(_Value(parts=[arguments]))

    def _fill(self, opcode: pickletools.OpcodeInfo) -> None:
        marked = opcode.name in ("APPENDS", "SETITEMS", "ADDITEMS")
        items = self._pop_to_mark() if marked else self._pop(len(opcode.stack_before) - 1)
        container = self.stack[-1]
        assert container is not None
        container.parts.extend(items)

    def _default(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        marked = pickletools.markobject in opcode.stack_before
        parts = self._pop_to_mark() if marked else self._pop(len(opcode.stack_before))
        text = argument if isinstance(argument, str) else None
        self.stack.extend(_Value(text=text, parts=parts) for _ in opcode.stack_after)

    def _pop(self, count: int) -> list[_Value]:
        values = [self.stack.pop() for _ in range(count)]
        return [value for value in reversed(values) if value is not None]

    def _pop_to_mark(self) -> list[_Value]:
        values: list[_Value] = []
        while (value := self.stack.pop()) is not None:
            values.append(value)
        return values[::-1]


def _modern_name(module: str, name: str) -> str:
    """Torch's own translation of Python 2 names, which protocol 2 writes."""
    from torch._utils import IMPORT_MAPPING, NAME_MAPPING

    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    else:
        module = IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"


def _reachable(values: Iterable[_Value]) -> Iterator[_Value]:
    seen: set[int] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.parts)
            yield value


def torch_default_names() -> frozenset[str]:
    """What ``torch.load(weights_only=True)`` opens with no allow-list: tensors, storages, dtypes."""
    from torch._weights_only_unpickler import _get_allowed_globals

    return frozenset(_get_allowed_globals())


def load_safely(path: Path, data: bytes) -> Any:
    """Open a ``torch.save`` archive with the allow-list.

    Args:
        path: The archive, for ``torch.load``.
        data: Its ``data.pkl``.

    Error:
        UntrustedPickleError: It names something outside the allow-list, or would call a constructor.
        LoadingError: It is damaged, or a package it needs is missing.
    """
    scan = scan_pickle(data)
    stand_ins: dict[str, Any] = {name: _ActivationMark(name) for name in ACTIVATION_NAMES}
    stand_ins[PARTIAL_NAME] = _PartialRecipe
    ours = scan.names - torch_default_names()
    foreign = ours - allowed_names() - stand_ins.keys()
    if foreign:
        refuse_names(path, foreign)
    classes = {name: resolve_name(name) for name in ours & allowed_names()}
    _check_classes(path, classes, scan)
    allowed: list[Any] = [(item, name) for name, item in {**classes, **stand_ins}.items() if name in ours]
    with torch.serialization.safe_globals(allowed):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    for item in loaded.values() if isinstance(loaded, dict) else [loaded]:
        if isinstance(item, nn.Module):
            _put_back_functions(path, item)
            _check_instances(path, item)
    return loaded


def refuse_names(path: Path, names: Iterable[str]) -> NoReturn:
    """Say which names are not on the allow-list and what to do.

    Raises:
        UntrustedPickleError: Always.
    """
    listed = sorted(names)
    raise UntrustedPickleError(
        f"{path} refers to {len(listed)} name{'s' * (len(listed) != 1)} outside the allow-list, so it was not opened: "
        f"{', '.join(listed)}. Give --trust-pickle only if you trust where the file comes from (it can run any code), "
        "or save model.state_dict() and give --arch.",
        listed,
    )


def _check_classes(path: Path, classes: dict[str, Any], scan: PickleScan) -> None:
    not_classes = [name for name, item in classes.items() if not isinstance(item, type)]
    if not_classes:
        refuse_names(path, not_classes)
    called = {name for name, item in classes.items() if name in scan.constructed and not issubclass(item, enum.Enum)}
    called |= scan.constructed & set(ACTIVATION_NAMES)
    if called:
        raise UntrustedPickleError(
            f"{path} would call {', '.join(sorted(called))} with arguments of its own, which torch.save never writes, "
            "so it was not opened. Give --trust-pickle only if you trust where the file comes from.",
            sorted(called),
        )


def _put_back_functions(path: Path, model: nn.Module) -> None:
    """Replace the stand-ins among the modules' attributes with what they stood for."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, _ActivationMark | _PartialRecipe):
                vars(module)[name] = _real_function(path, value)


def _real_function(path: Path, value: Any) -> Any:
    if isinstance(value, _ActivationMark):
        return resolve_name(value.name)
    target = value.function
    if isinstance(target, _ActivationMark):
        return functools.partial(resolve_name(target.name), *value.args, **value.keywords)
    if isinstance(target, type) and issubclass(target, nn.Module) and target.__module__.startswith("torch.nn.modules."):
        return functools.partial(target, *value.args, **value.keywords)
    refuse_names(path, [PARTIAL_NAME])


def _check_instances(path: Path, model: nn.Module) -> None:
    """Refuse hooks and methods replaced on the instance: state may hold data, not behaviour.

    Raises:
        UntrustedPickleError: A module has one.
    """
    for name, module in model.named_modules():
        state = vars(module)
        hooks = [table for table in _HOOK_TABLES if state.get(table)]
        shadowed = [
            key
            for key, value in state.items()
            if callable(value) and not isinstance(value, nn.Module) and callable(getattr(type(module), key, None))
        ]
        if hooks or shadowed:
            raise UntrustedPickleError(
                f"{path} replaces the behaviour of module {name or type(module).__name__!r}: "
                f"{', '.join(hooks + shadowed)}. Save the model without hooks, or give --trust-pickle if you trust it.",
                hooks + shadowed,
            )
