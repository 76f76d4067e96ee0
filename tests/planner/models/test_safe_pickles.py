"""Safe unpickling: real models come back, nothing from a file runs."""

import functools
import importlib
import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grids import slow_but
from trady.planner.errors import LoadingError, UntrustedPickleError
from trady.planner.models.loading import load_model
from trady.planner.models.safe_pickles import ACTIVATION_NAMES, INERT_CLASSES, allowed_names, scan_pickle

TORCHVISION = [
    "mobilenet_v2", "resnet18", "resnet50", "efficientnet_b0", "vit_b_16", "swin_t", "convnext_tiny", "densenet121",
    "shufflenet_v2_x1_0", "mobilenet_v3_small", "maxvit_t",
]  # fmt: skip
TIMM = ["resnet18", "efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto", "levit_128s", "dm_nfnet_f0"]
FEW = {"mobilenet_v2", "swin_t", "densenet121", "efficientnet_lite0", "vit_tiny_patch16_224"}


class RunsACommand:
    """Pickles to a call of ``os.system``."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


class CallsAConstructor:
    """Pickles to a call of an allow-listed class, which torch alone would make."""

    def __reduce__(self) -> tuple[Any, ...]:
        return nn.Linear, (3, 4)


def build_on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def save(item: Any, path: Path, **options: Any) -> Path:
    torch.save(item, path, **options)
    return path


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", slow_but(FEW.__contains__, TORCHVISION))
def test_torchvision_modules_come_back(name: str, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    model = build_on_meta(lambda: models.get_model(name))
    loaded = load_model(save(model, tmp_path / "model.pt")).model
    assert type(loaded) is type(model)
    assert shapes(loaded) == shapes(model)


@pytest.mark.parametrize("name", slow_but(FEW.__contains__, TIMM))
def test_timm_modules_come_back(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = build_on_meta(lambda: timm.create_model(name))
    loaded = load_model(save(model, tmp_path / "model.pt")).model
    assert type(loaded) is type(model)
    assert shapes(loaded) == shapes(model)


@pytest.mark.parametrize(
    "kind", ["BertForSequenceClassification", "LlamaForCausalLM", "ViTForImageClassification", "GemmaForCausalLM"]
)
def test_transformers_modules_come_back_and_compute_the_same(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind.split("For")[0] + "Config")(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, head_dim=16,
        num_key_value_heads=2,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    loaded: Any = load_model(save(model, tmp_path / "model.pt"))
    assert torch.equal(loaded.model(**loaded.inputs).logits, model(**loaded.inputs).logits)


def test_activation_functions_and_partials_are_put_back(tmp_path: Path) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, activation=F.gelu)
    model.make_norm = functools.partial(nn.LayerNorm, eps=1e-6)  # type: ignore[assignment]  # as torchvision's vision transformers keep it
    loaded: Any = load_model(save(model, tmp_path / "model.pt"), input_shape="5x8").model
    assert loaded.activation is F.gelu
    assert loaded.make_norm.func is nn.LayerNorm
    assert loaded.make_norm.keywords == {"eps": 1e-6}


def test_a_command_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    path = save({"model": nn.Linear(2, 2), "extra": RunsACommand(witness)}, tmp_path / "model.pt")
    with pytest.raises(UntrustedPickleError, match=r"posix\.system.*--trust-pickle") as error:
        load_model(path)
    assert error.value.foreign_globals == ("posix.system",)
    assert not witness.exists()


def test_a_command_in_a_plain_pickle_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(RunsACommand(witness), protocol=4))
    with pytest.raises(UntrustedPickleError, match=r"posix\.system"):
        load_model(path)
    assert not witness.exists()


def test_a_command_in_an_old_file_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    path = save(RunsACommand(witness), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UntrustedPickleError, match=r"posix\.system"):
        load_model(path)
    assert not witness.exists()


def test_every_foreign_name_is_listed(tmp_path: Path) -> None:
    path = save([RunsACommand(tmp_path), Path("x"), io.StringIO], tmp_path / "model.pt")
    with pytest.raises(UntrustedPickleError, match="3 names outside the allow-list") as error:
        load_model(path)
    assert {"posix.system", "_io.StringIO"} < set(error.value.foreign_globals)


def test_constructors_are_not_called(tmp_path: Path) -> None:
    path = save(CallsAConstructor(), tmp_path / "model.pt")
    with pytest.raises(UntrustedPickleError, match=r"would call torch\.nn\.modules\.linear\.Linear"):
        load_model(path)


def test_constructors_are_not_called_through_torchs_own_functions(tmp_path: Path) -> None:
    class Indirect:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._tensor._rebuild_from_type_v2, (nn.Linear, nn.Linear, (3, 4), {})

    path = save(Indirect(), tmp_path / "model.pt")
    with pytest.raises(UntrustedPickleError, match=r"would call torch\.nn\.modules\.linear\.Linear"):
        load_model(path)


def test_hooks_and_replaced_methods_are_refused(tmp_path: Path) -> None:
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(UntrustedPickleError, match="_forward_hooks"):
        load_model(save(hooked, tmp_path / "hooked.pt"))
    replaced = nn.Linear(2, 2)
    replaced.forward = nn.Linear  # type: ignore[method-assign,assignment]
    with pytest.raises(UntrustedPickleError, match=r"replaces the behaviour.*forward"):
        load_model(save({"model": replaced}, tmp_path / "replaced.pt"))


def test_a_partial_of_anything_else_is_refused(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = nn.Linear(2, 2)
    model.make = functools.partial(torchvision.models.ResNet, 3)  # type: ignore[assignment]
    with pytest.raises(UntrustedPickleError, match=r"functools\.partial"):
        load_model(save(model, tmp_path / "model.pt"))


def test_an_old_pickle_before_an_archive_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    """A file that is both: Python finds the archive at its end, torch the pickle at its start."""
    first, second, both = tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "both.pt"
    save(CallsAConstructor(), first, _use_new_zipfile_serialization=False)
    save(nn.Linear(2, 2), second)
    both.write_bytes(first.read_bytes() + second.read_bytes())
    assert zipfile.is_zipfile(both)
    with pytest.raises(UntrustedPickleError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load_model(both)


def test_trust_runs_the_pickle(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    path = save({"model": nn.Linear(2, 2), "extra": RunsACommand(witness)}, tmp_path / "model.pt")
    assert isinstance(load_model(path, trust_pickle=True).model, nn.Linear)
    assert witness.exists()


def test_the_allow_list_is_scoped(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    load_model(save(nn.Linear(2, 2), tmp_path / "model.pt"))
    with pytest.raises(LoadingError):
        load_model(save(RunsACommand(tmp_path), tmp_path / "bad.pt"))
    assert set(torch.serialization.get_safe_globals()) == before


def resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def check_is_allowed_class(name: str, configurations: tuple[type, ...]) -> None:
    item = resolve(name)
    assert isinstance(item, type), name
    assert f"{item.__module__}.{item.__qualname__}" == name
    assert issubclass(item, (nn.Module, Enum, *configurations)) or name in INERT_CLASSES, name
    assert not issubclass(item, torch.jit.ScriptModule | torch.fx.GraphModule), name


@pytest.mark.parametrize("package", ["torch.", "torchvision.", "timm."])
def test_every_allowed_name_is_a_class_of_the_named_kinds(package: str) -> None:
    pytest.importorskip(package.rstrip("."))
    names = [name for name in allowed_names() if name.startswith(package)]
    assert len(names) > 100
    for name in names:
        check_is_allowed_class(name, ())


@pytest.mark.slow
def test_every_allowed_name_of_transformers_is_a_class_of_the_named_kinds() -> None:
    transformers = pytest.importorskip("transformers")
    for name in sorted(allowed_names()):
        if name.startswith("transformers."):
            check_is_allowed_class(name, (transformers.PreTrainedConfig,))


def test_the_allow_list_holds_no_other_package_and_no_function_stand_in() -> None:
    assert {name.split(".")[0] for name in allowed_names()} == {"torch", "torchvision", "timm", "transformers"}
    assert not allowed_names() & {*ACTIVATION_NAMES, "functools.partial"}


def test_the_scan_finds_what_pickletools_lists() -> None:
    data = pickle.dumps({"a": Path("x"), "b": [nn.Linear(1, 1)]}, protocol=2)
    listed = {str(arg).replace(" ", ".") for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"}
    assert {name.replace("__builtin__", "builtins") for name in listed} >= scan_pickle(data).names - {"builtins.set"}
    assert "torch.nn.modules.linear.Linear" in scan_pickle(data).names


def test_a_pickle_cut_short_is_not_scanned() -> None:
    with pytest.raises(ValueError, match="pickle"):
        scan_pickle(pickle.dumps([1, 2, 3], protocol=2)[:-1])
