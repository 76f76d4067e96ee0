"""The file of a recording: whole or refused with the reason, read without torch; which plans it fits."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from tables import cost_table, layer_costs, plan_of
from trady.planner.errors import CalibrationError, TradyError
from trady.planner.ledger.cost_records import GroupInput, InputGroup
from trady.planner.options import NormMode
from trady.planner.plan.plan import Plan
from trady.planner.priorities.gradient_recordings import GradientRecording, RecordedLayer, RecordingHeader

KEY = "trady_gradient_recording"
Tensors = dict[str, np.ndarray[Any, Any]]


def recording(channels: tuple[int, ...] = (3, 5), epochs: int = 2) -> GradientRecording:
    random = np.random.default_rng(0)
    header = RecordingHeader(
        fingerprint="0" * 64,
        source="nets:small",
        origin="photos",
        num_batches=2,
        batch_size=4,
        learning_rate=0.01,
        norm=NormMode.FROZEN,
        seed=3,
        sketch_size=8,
        layers=tuple(
            RecordedLayer(name=f"layer{index}", weight_name=f"layer{index}.weight", channels=count)
            for index, count in enumerate(channels)
        ),
        tail_index=(1.5,) + (None,) * (epochs - 1),
        losses=tuple(1.0 / (epoch + 1) for epoch in range(epochs)),
    )
    return GradientRecording(
        header,
        tuple(random.random((epochs, count)).astype(np.float32) for count in channels),
        tuple(random.standard_normal((epochs, count, 8)).astype(np.float32) for count in channels),
    )


def plan(channels: tuple[int, ...], fingerprint: str = "0" * 64) -> Plan:
    layers = [layer_costs(index, count, index) for index, count in enumerate(channels)]
    groups = [InputGroup(inputs=(GroupInput(channel_bytes=16, kept_by=None),)) for _ in channels]
    made = plan_of(cost_table(layers, groups), budget_bytes=10_000)
    return made.model_copy(update={"model": made.model.model_copy(update={"fingerprint": fingerprint})})


def test_a_recording_survives_the_file_and_gives_the_same_bytes(tmp_path: Path) -> None:
    made = recording()
    made.save(tmp_path / "a.safetensors")
    found = GradientRecording.load(tmp_path / "a.safetensors")
    found.save(str(tmp_path / "b.safetensors"))
    assert found.header == made.header
    for one, two in zip((*found.norms, *found.sketches), (*made.norms, *made.sketches), strict=True):
        assert np.array_equal(one, two) and one.dtype == np.float32
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (found.layers, found.num_epochs, found.losses) == (("layer0", "layer1"), 2, (1.0, 0.5))
    assert (found.fingerprint, found.tail_index) == ("0" * 64, (1.5, None))
    assert found.indices_of(["layer1", "layer0"]) == (1, 0)


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    recording().save(tmp_path / "a.safetensors")
    program = (
        "import sys; from trady.planner import GradientRecording; "
        f"GradientRecording.load({str(tmp_path / 'a.safetensors')!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def content(path: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def replaced(name: str, value: Any) -> Callable[[Tensors, dict[str, str]], None]:
    def change(tensors: Tensors, _: dict[str, str]) -> None:
        tensors[name] = value

    return change


def removed(name: str) -> Callable[[Tensors, dict[str, str]], None]:
    def change(tensors: Tensors, _: dict[str, str]) -> None:
        del tensors[name]

    return change


def rewritten(before: str, after: str) -> Callable[[Tensors, dict[str, str]], None]:
    def change(_: Tensors, metadata: dict[str, str]) -> None:
        assert before in metadata[KEY]
        metadata[KEY] = metadata[KEY].replace(before, after)

    return change


NORMS = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, metadata: metadata.clear(), "it is a safetensors file without a gradient recording"),
        (rewritten('"schema_version":1', '"schema_version":2'), r"it is of version 2; this Trady reads version 1"),
        (rewritten('"losses":[1.0,0.5]', '"losses":[1.0]'), "there are 1 losses but 2 tail indices"),
        (rewritten('"name":"layer1"', '"name":"layer0"'), "two layers have the same name"),
        (rewritten('"seed":3', '"seed":"three"'), "seed: Input should be a valid integer"),
        (rewritten("{", "["), "header: Invalid JSON"),
        (removed("norms/layer1.weight"), r"tensor 'norms/layer1\.weight' is missing"),
        (removed("sketches/layer0.weight"), r"tensor 'sketches/layer0\.weight' is missing"),
        (replaced("norms/layer0.weight", NORMS[:1]), r"is float32\[1, 3\], not the float32\[2, 3\] of its header"),
        (replaced("norms/layer0.weight", NORMS.astype(np.float64)), r"is float64\[2, 3\], not the float32"),
        (replaced("sketches/layer0.weight", np.ones((2, 3, 4), np.float32)), r"not the float32\[2, 3, 8\]"),
        (replaced("norms/layer0.weight", NORMS * np.nan), r"'norms/layer0\.weight' has values that are not finite"),
        (replaced("norms/layer0.weight", -NORMS), r"'norms/layer0\.weight' has negative norms"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, change: Callable[[Tensors, dict[str, str]], None], message: str
) -> None:
    path = tmp_path / "r.safetensors"
    recording().save(path)
    tensors, metadata = content(path)
    change(tensors, metadata)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    with pytest.raises(
        CalibrationError, match=rf"Recording .*r\.safetensors cannot be used: .*{message}.* Record again"
    ):
        GradientRecording.load(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_files_are_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "r.safetensors"
    recording().save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CalibrationError, match=r"it is no whole safetensors file .*Record again with trady-profile"):
        GradientRecording.load(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text('{"schema_version": 1}' * 9)
    with pytest.raises(CalibrationError, match="it is no whole safetensors file"):
        GradientRecording.load(tmp_path / "text")
    with pytest.raises(CalibrationError, match=r"Recording .*missing cannot be used: No such file"):
        GradientRecording.load(tmp_path / "missing")
    with pytest.raises(CalibrationError, match=r"Recording .* cannot be used: .*directory"):
        GradientRecording.load(tmp_path)
    with pytest.raises(TradyError, match=r"cannot be written"):
        recording().save(tmp_path / "nowhere" / "r.safetensors")


def test_plans_of_the_recorded_model_fit_with_layers_left_out() -> None:
    recording().check_fits(*plan((3, 5)).recorded_model)
    recording().check_fits(*plan((3,)).recorded_model)


@pytest.mark.parametrize(
    ("channels", "fingerprint", "message"),
    [
        ((3, 6), "0" * 64, r"layer 'layer1' of 6 input channels is recorded with 5 input channels"),
        ((3, 5, 2), "1" * 64, r"layer 'layer2' of 2 input channels is not recorded"),
        ((3, 5), "1" * 64, r"names, shapes or types of other tensors differ.*0{12} against 1{12}"),
    ],
)
def test_plans_of_other_models_are_refused(channels: tuple[int, ...], fingerprint: str, message: str) -> None:
    expected = (
        rf"Recording of 'nets:small' on photos is of another model than the plan of 'tests': {message}.* Record again"
    )
    with pytest.raises(CalibrationError, match=expected):
        recording().check_fits(*plan(channels, fingerprint).recorded_model)
