"""Files and factories become models, and bad ones clear errors."""

import io
import json
import socket
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trady.planner.errors import LoadingError, UntrustedPickleError
from trady.planner.models import hub as network
from trady.planner.models import timm_zoo, torchvision_zoo, transformers_zoo
from trady.planner.models.factories import WeightsOrigin, load_factory
from trady.planner.models.loading import LoadedModel, load_model
from trady.planner.models.training_step import Inputs, call_model

FACTORIES = """
import torch
from torch import nn

def net(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, num_classes))

def with_inputs():
    return net(), torch.zeros(2, 3, 8, 8)

def with_loss():
    return net(), torch.zeros(2, 3, 8, 8), nn.functional.mse_loss

def raises():
    raise RuntimeError("no such checkpoint")

def returns_text():
    return "net"

def bad_loss():
    return net(), None, 3

NUMBER = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of factories in the working directory, which is not on the path."""
    name = f"factories_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "can_reach", lambda host: False)
    for zoo in (torchvision_zoo, timm_zoo, transformers_zoo):
        monkeypatch.setattr(zoo, "can_reach", lambda host: False, raising=False)


def save(item: Any, path: Path) -> Path:
    torch.save(item, path)
    return path


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))


class AddsTwo(nn.Module):
    """Two inputs, one of them by keyword."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


def export(path: Path, dynamic: bool = False) -> Path:
    sizes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(net(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=sizes)
    torch.export.save(program, path)
    return path


def rewrite(path: Path, member_end: str, change: Callable[[bytes], bytes]) -> Path:
    """The archive with one member changed."""
    changed = path.with_name(f"changed_{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.endswith(member_end) else data)
    return changed


def change_program(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    def edit(data: bytes) -> bytes:
        program = json.loads(data)
        change(program)
        return json.dumps(program).encode()

    return rewrite(path, "models/model.json", edit)


def outputs_of(model: nn.Module, inputs: Inputs) -> Tensor:
    outputs = call_model(model, inputs)
    assert isinstance(outputs, Tensor)
    return outputs


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_module_comes_back_with_its_weights(tmp_path: Path) -> None:
    model = net()
    loaded = load_model(save(model, tmp_path / "model.pt"), input_shape="3x8x8")
    assert loaded.weights is WeightsOrigin.FILE and loaded.arch is None and loaded.loss is None
    assert loaded.preprocessing is not None and loaded.preprocessing.source == "imagenet (assumed)"
    assert torch.equal(outputs_of(loaded.model, loaded.inputs), outputs_of(model, loaded.inputs))


def test_an_assumed_input_is_said_aloud(tmp_path: Path) -> None:
    loaded = load_model(save(net(), tmp_path / "model.pt"))
    assert loaded.notes == ["Input 3x224x224 assumed from the first layer '0'; give --input to change it."]


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_fills_its_architecture(key: str | None, prefix: str, tmp_path: Path, own_module: str) -> None:
    state = {prefix + name: tensor for name, tensor in net().state_dict().items()}
    path = save({key: state, "epoch": 3} if key else state, tmp_path / "weights.pth")
    loaded = load_model(path, arch=f"{own_module}:net")
    assert loaded.weights is WeightsOrigin.FILE and loaded.arch == f"{own_module}:net"
    assert all(torch.equal(tensor, state[prefix + name]) for name, tensor in loaded.model.state_dict().items())
    assert bool(prefix) == any("Prefix 'module.'" in note for note in loaded.notes)
    assert (key is not None) == any(f"under {key!r}" in note for note in loaded.notes)


def test_a_head_of_another_size_is_built_at_its_size(tmp_path: Path, own_module: str) -> None:
    state = net().state_dict()
    state["2.weight"], state["2.bias"] = torch.randn(7, 144), torch.randn(7)
    loaded = load_model(save(state, tmp_path / "weights.pth"), arch=f"{own_module}:net")
    assert torch.equal(loaded.model.state_dict()["2.weight"], state["2.weight"])
    assert any("7 classes" in note for note in loaded.notes)


def test_a_head_the_factory_cannot_change_names_both_shapes(tmp_path: Path, own_module: str) -> None:
    state = net().state_dict()
    state["2.weight"], state["2.bias"] = torch.randn(7, 144), torch.randn(7)
    with pytest.raises(LoadingError, match=r"2\.weight is \[7, 144\] in the file and \[3, 144\] in the model"):
        load_model(save(state, tmp_path / "weights.pth"), arch=f"{own_module}:with_inputs")


def test_names_that_do_not_fit_are_listed(tmp_path: Path, own_module: str) -> None:
    state = net().state_dict()
    state["3.weight"] = state.pop("2.weight")
    with pytest.raises(LoadingError, match=r"1 missing \(2\.weight\); 1 unexpected \(3\.weight\)"):
        load_model(save(state, tmp_path / "weights.pth"), arch=f"{own_module}:net")


@pytest.mark.slow
def test_without_arch_the_closest_architectures_are_listed(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    pytest.importorskip("timm")
    path = save(models.mobilenet_v2(num_classes=10).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(LoadingError, match=r"Give --arch.*Closest of the \d+ .* compared.*: torchvision:mobilenet_v2"):
        load_model(path)


def test_safetensors_need_an_architecture(tmp_path: Path, own_module: str) -> None:
    state, path = net().state_dict(), tmp_path / "weights.safetensors"
    save_file(state, path)
    loaded = load_model(path, arch=f"{own_module}:net")
    assert torch.equal(loaded.model.state_dict()["0.weight"], state["0.weight"])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(LoadingError, match=r"not a whole \.safetensors"):
        load_model(path, arch=f"{own_module}:net")


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_torchscript_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.trace(net(), torch.zeros(1, 3, 8, 8)).save(str(path))
    with pytest.raises(LoadingError, match=r"TorchScript.*torch\.export"):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\xff\xd8\xff\xe0 a picture", r"not a model file: it begins with b'\\xff\\xd8"),
        (b"PK\x03\x04 cut", "is cut short"),
        (b"\x80\x02garbage", "cannot be opened as a model"),
    ],
)
def test_files_that_are_no_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(LoadingError, match=message):
        load_model(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_truncated_file_is_cut_short(share: float, tmp_path: Path) -> None:
    path = save(net(), tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(LoadingError, match="is cut short"):
        load_model(path)


def test_a_file_that_is_missing_a_folder_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match=r"nowhere\.pt' does not exist.*torchvision:NAME"):
        load_model(tmp_path / "nowhere.pt")
    with pytest.raises(LoadingError, match=r"is a directory.*transformers:"):
        load_model(tmp_path)
    with pytest.raises(LoadingError, match="holds a list, neither a module nor a state dict"):
        load_model(save([torch.zeros(2)], tmp_path / "list.pt"))


# --- exported programs ---------------------------------------------------------------------------------------------


def test_an_exported_program_brings_its_inputs_and_says_its_batch_is_fixed(tmp_path: Path) -> None:
    loaded = load_model(export(tmp_path / "model.pt2"))
    assert isinstance(loaded.inputs, Tensor) and loaded.inputs.shape == (2, 3, 8, 8)
    assert outputs_of(loaded.model, loaded.inputs).shape == (2, 3)
    assert any("fixed size" in note for note in loaded.notes)


def test_an_exported_program_with_a_dynamic_batch_takes_any(tmp_path: Path) -> None:
    loaded = load_model(export(tmp_path / "model.pt2", dynamic=True))
    assert loaded.model(torch.zeros(5, 3, 8, 8)).shape == (5, 3)
    assert not loaded.notes


def test_an_exported_program_with_keywords_has_keyword_inputs(tmp_path: Path) -> None:
    given = {"left": torch.ones(2, 3), "right": torch.ones(2, 3)}
    torch.export.save(torch.export.export(AddsTwo(), (), given), tmp_path / "model.pt2")
    loaded = load_model(tmp_path / "model.pt2")
    assert isinstance(loaded.inputs, dict) and set(loaded.inputs) == set(given)


class Witness:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickled_payload_in_an_exported_program_needs_trust(tmp_path: Path) -> None:
    payload, witness = io.BytesIO(), tmp_path / "ran"
    torch.save((Witness(witness),), payload)
    path = rewrite(export(tmp_path / "model.pt2"), "sample_inputs/model.pt", lambda _: payload.getvalue())
    with pytest.raises(UntrustedPickleError, match=r"pickled payload .*sample_inputs/model\.pt.*--trust-pickle"):
        load_model(path)
    assert not witness.exists()


def test_a_pickled_weight_in_an_exported_program_needs_trust(tmp_path: Path) -> None:
    path = rewrite(
        export(tmp_path / "model.pt2"),
        "weights_config.json",
        lambda data: data.replace(b'"use_pickle": false', b'"use_pickle": true', 1),
    )
    with pytest.raises(UntrustedPickleError, match=r"pickled payload weight_0 for '0\.weight'"):
        load_model(path)


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.ops.aten.save", "torch.hub.load", "_operator.methodcaller"]
)
def test_an_operator_that_is_none_needs_trust(target: str, tmp_path: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(UntrustedPickleError, match=f"operator '{target}'"):
        load_model(change_program(export(tmp_path / "model.pt2"), change))


def test_an_expression_that_runs_code_needs_trust(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    code = f"__import__('pathlib').Path('{witness}').touch()"
    path = rewrite(
        export(tmp_path / "model.pt2", dynamic=True),
        "models/model.json",
        lambda data: data.replace(b"Symbol('s", code.encode() + b" or Symbol('s", 1),
    )
    with pytest.raises(UntrustedPickleError, match=r"expression .*__import__"):
        load_model(path)
    assert not witness.exists()


def test_a_name_that_is_source_needs_trust(tmp_path: Path) -> None:
    path = rewrite(
        export(tmp_path / "model.pt2"),
        "models/model.json",
        lambda data: data.replace(b'"name": "input"', b'"name": "input, y=print()"'),
    )
    with pytest.raises(UntrustedPickleError, match=r"name 'input, y=print\(\)'"):
        load_model(path)


# --- factories -----------------------------------------------------------------------------------------------------


def test_the_users_factory_may_bring_inputs_and_a_loss(own_module: str) -> None:
    before = list(sys.path)
    alone = load_model(f"{own_module}:net", input_shape="3x8x8")
    assert alone.weights is WeightsOrigin.FACTORY and alone.arch == f"{own_module}:net"
    with_inputs = load_model(f"{own_module}:with_inputs")
    assert torch.equal(with_inputs.inputs, torch.zeros(2, 3, 8, 8))  # type: ignore[arg-type]
    assert load_model(f"{own_module}:with_loss").loss is nn.functional.mse_loss
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "raised RuntimeError: no such checkpoint"),
        ("returns_text", r"returned \(str\)\. It must return a module"),
        ("bad_loss", "returned a loss of type int"),
        ("nett", "has no function 'nett'.*Closest: net"),
        ("NUMBER", "has no function 'NUMBER'"),
    ],
)
def test_factories_that_do_not_make_a_model(function: str, message: str, own_module: str) -> None:
    with pytest.raises(LoadingError, match=message):
        load_model(f"{own_module}:{function}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere_at_all:net", "module 'nowhere_at_all' cannot be imported"),
        ("torchvision:mobilenet_v22", r"torchvision has no model.*Closest: mobilenet_v2"),
        ("timm:resnet188", r"timm has no model.*Closest: resnet18"),
        ("torchvision:", "lacks a name after the colon"),
    ],
)
def test_unknown_factories_name_the_closest(source: str, message: str) -> None:
    with pytest.raises(LoadingError, match=message):
        load_model(source)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050"])
def test_weights_that_cannot_be_had_are_random_and_said_aloud(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(source.split(":")[0])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    started = time.monotonic()
    loaded = load_model(source)
    assert time.monotonic() - started < 15
    assert loaded.weights is WeightsOrigin.RANDOM
    assert any("could not be had" in note and "priorities will be uniform" in note for note in loaded.notes)
    assert loaded.preprocessing is not None and loaded.preprocessing.source == source.split(":")[0]


@pytest.mark.usefixtures("offline")
def test_an_unknown_hub_name_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    constants = pytest.importorskip("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(LoadingError, match="transformers knows no model 'nobody/nothing'"):
        load_model("transformers:nobody/nothing")
    assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        ("torchvision:inception_v3", (2, 3, 299, 299)),
        ("torchvision:r3d_18", (2, 3, 16, 112, 112)),
        ("torchvision:regnet_y_400mf", (2, 3, 224, 224)),
        ("timm:mobilevit_xxs", (2, 3, 256, 256)),
    ],
)
def test_inputs_are_the_size_the_weights_were_made_for(source: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip(source.split(":")[0])
    loaded = load_model(source, meta=True)
    assert isinstance(loaded.inputs, Tensor) and loaded.inputs.shape == shape
    assert all(parameter.is_meta for parameter in loaded.model.parameters())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert", "BertForSequenceClassification"),
        ("llama", "LlamaForCausalLM"),
        ("t5", "T5ForConditionalGeneration"),
        ("vit", "ViTForImageClassification"),
        ("LlamaConfig", "LlamaForCausalLM"),
    ],
)
def test_transformers_configurations_get_a_class_for_their_task(name: str, kind: str) -> None:
    pytest.importorskip("transformers")
    loaded = load_model(f"transformers:{name}", meta=True)
    assert type(loaded.model).__name__ == kind and loaded.weights is WeightsOrigin.META
    assert all(parameter.is_meta for parameter in loaded.model.parameters())
    assert isinstance(loaded.inputs, dict) and not any(tensor.is_meta for tensor in loaded.inputs.values())


def test_a_transformers_folder_brings_weights_and_preprocessing(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, num_labels=5
    )
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    loaded: LoadedModel = load_model(f"transformers:{tmp_path / 'vit'}")
    assert loaded.weights is WeightsOrigin.PRETRAINED and isinstance(loaded.model, type(model))
    assert loaded.preprocessing is not None and loaded.preprocessing.std == (0.25, 0.25, 0.25)
    assert torch.equal(loaded.model.state_dict()["classifier.weight"], model.classifier.weight)


def test_arch_goes_with_weights_only(own_module: str, tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match=r"--arch 'a:b' goes with a file of weights"):
        load_model(f"{own_module}:net", arch="a:b")
    loaded = load_model(save(net(), tmp_path / "model.pt"), arch=f"{own_module}:net", input_shape="3x8x8")
    assert loaded.arch is None and "is not needed" in loaded.notes[0]


def test_the_loss_is_the_users_function_or_a_loss_class(own_module: str) -> None:
    loaded = load_model(f"{own_module}:with_loss", loss="torch.nn:CrossEntropyLoss")
    assert isinstance(loaded.loss, nn.CrossEntropyLoss)
    with pytest.raises(LoadingError, match="--loss 'mse' is not of the form"):
        load_model(f"{own_module}:net", loss="mse")


def test_load_factory_names_its_subject() -> None:
    assert load_factory("math:sqrt", "--data")(4) == 2
    with pytest.raises(LoadingError, match=r"--data 'math:sqr'.*Closest: sqrt"):
        load_factory("math:sqr", "--data")


def answer_too_late(*args: Any, **options: Any) -> None:
    time.sleep(1)
    raise TimeoutError


def test_nothing_hangs_on_a_silent_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "getproxies", dict)
    monkeypatch.setattr(network, "_REACH_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", answer_too_late)
    started = time.monotonic()
    assert not network.can_reach("example.org")
    assert time.monotonic() - started < 0.9
