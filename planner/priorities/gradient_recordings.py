"""Gradient recordings: what every input channel's gradient did in each epoch of a real training. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import safetensors.numpy
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from trady.planner.errors import CalibrationError
from trady.planner.files import write_atomically
from trady.planner.options import NormMode
from trady.planner.records import Record

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]

SCHEMA_VERSION: Final = 1
_METADATA_KEY: Final = "trady_gradient_recording"
_VERSION_KEY: Final = "schema_version"
_AGAIN: Final = "Record again with trady-profile --record"


class RecordedLayer(Record):
    """A layer of the recorded model.

    Args:
        name: Module path.
        weight_name: Dotted name of its weight.
        channels: Input channels.
    """

    name: str
    weight_name: str
    channels: Positive


class RecordingHeader(Record):
    """Which training was recorded.

    Args:
        schema_version: Version of the file's format.
        fingerprint: Of the model's names, shapes and types, its head replaced, as in a plan.
        source: The model, as typed.
        origin: The data by name.
        num_batches: Batches of an epoch.
        batch_size: Samples of a batch.
        learning_rate: Of SGD without momentum.
        norm: What norms with running statistics did.
        seed: Of the order of the data and of dropout.
        sketch_size: Numbers a channel's gradient is sketched by.
        layers: Recorded layers, in the model's order.
        tail_index: Of each epoch's stochastic gradients (2 for Gaussian); ``None`` where not measured.
        losses: Mean loss of each epoch.
    """

    schema_version: Literal[1] = 1
    fingerprint: str
    source: str
    origin: str
    num_batches: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    norm: NormMode
    seed: int
    sketch_size: Positive
    layers: Annotated[tuple[RecordedLayer, ...], Field(min_length=1)]
    tail_index: tuple[Finite | None, ...]
    losses: Annotated[tuple[Finite, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> "RecordingHeader":
        if len(self.tail_index) != len(self.losses):
            raise ValueError(f"there are {len(self.losses)} losses but {len(self.tail_index)} tail indices")
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            raise ValueError("two layers have the same name")
        return self


@dataclass(frozen=True, eq=False)
class GradientRecording:
    """Gradient norms and sketches of every input channel in every epoch of a training.

    Args:
        header: Which training was recorded.
        norms: For each layer ``[epochs, channels]``, float32: mean over an epoch's batches of ``||dL/dW[:, c]||_2``.
        sketches: For each layer ``[epochs, channels, 8]``, float32: of the epoch's mean gradient. Plain dot products
            of sketches of a channel, in two epochs or two recordings, estimate those of the gradients.
    """

    header: RecordingHeader
    norms: tuple[FloatArray, ...]
    sketches: tuple[FloatArray, ...]

    @property
    def fingerprint(self) -> str:
        """The recorded model's, as in a plan."""
        return self.header.fingerprint

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the recorded layers, in the model's order."""
        return tuple(layer.name for layer in self.header.layers)

    @property
    def num_epochs(self) -> int:
        """Recorded epochs."""
        return len(self.header.losses)

    @property
    def tail_index(self) -> tuple[float | None, ...]:
        """Tail index alpha of each epoch's stochastic gradients; ``None`` where not measured."""
        return self.header.tail_index

    @property
    def losses(self) -> tuple[float, ...]:
        """Mean loss of each epoch."""
        return self.header.losses

    def indices_of(self, names: Sequence[str]) -> tuple[int, ...]:
        """Places of layers among the recorded ones.

        Returns:
            Where each layer stands in the recording.

        Error:
            KeyError: A layer was not recorded.
        """
        places = {name: index for index, name in enumerate(self.layers)}
        return tuple(places[name] for name in names)

    def check_fits(self, channels: Mapping[str, int], fingerprint: str, source: str) -> None:
        """See that a plan is of the recorded model. A plan may leave layers out.

        Args:
            channels: Layer name -> input channels, for the plan's layers.
            fingerprint: Of the plan's model.
            source: The plan's model, as typed.

        Raises:
            CalibrationError: The models differ, naming the first layer that does, if one does.
        """
        recorded = {layer.name: layer.channels for layer in self.header.layers}
        differing = [name for name, number in channels.items() if recorded.get(name) != number]
        if not differing and fingerprint == self.fingerprint:
            return
        problem = "names, shapes or types of other tensors differ, such as a head of other classes"
        if differing:
            name = differing[0]
            there = f"recorded with {recorded[name]} input channels" if name in recorded else "not recorded"
            problem = f"layer {name!r} of {channels[name]} input channels is {there}"
        raise CalibrationError(
            f"Recording of {self.header.source!r} on {self.header.origin} is of another model than the plan of "
            f"{source!r}: {problem} (fingerprint {self.fingerprint[:12]} against {fingerprint[:12]}). {_AGAIN} on this "
            "model, with the same --classes."
        )

    def save(self, path: str | Path) -> None:
        """Write the file (safetensors), whole or not at all.

        Error:
            TradyError: The file cannot be written.
        """
        tensors: dict[str, FloatArray] = {}
        for layer, norms, sketches in zip(self.header.layers, self.norms, self.sketches, strict=True):
            tensors[_norms_name(layer)] = np.ascontiguousarray(norms, np.float32)
            tensors[_sketches_name(layer)] = np.ascontiguousarray(sketches, np.float32)
        metadata = {_METADATA_KEY: self.header.model_dump_json()}
        write_atomically(Path(path), safetensors.numpy.save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "GradientRecording":
        """Read a file that :meth:`save` wrote.

        Returns:
            The recording.

        Raises:
            CalibrationError: The file is missing, damaged, no recording, of another version, or contradicts itself.
        """
        try:
            with Path(path).open("rb"), safe_open(Path(path), framework="numpy") as file:
                header = _read_header(path, file.metadata() or {})
                known = set(file.keys())
                missing = [name for layer in header.layers for name in _names(layer) if name not in known]
                if missing:
                    raise CalibrationError(_unusable(path, f"tensor {missing[0]!r} is missing"))
                norms = tuple(file.get_tensor(_norms_name(layer)) for layer in header.layers)
                sketches = tuple(file.get_tensor(_sketches_name(layer)) for layer in header.layers)
        except OSError as error:
            raise CalibrationError(_unusable(path, error.strerror or str(error))) from error
        except SafetensorError as error:
            raise CalibrationError(_unusable(path, f"it is no whole safetensors file ({error})")) from error
        for layer, norm, drawn in zip(header.layers, norms, sketches, strict=True):
            shape = (len(header.losses), layer.channels)
            _check_tensor(path, _norms_name(layer), norm, shape)
            _check_tensor(path, _sketches_name(layer), drawn, (*shape, header.sketch_size))
            if (norm < 0).any():
                raise CalibrationError(_unusable(path, f"tensor {_norms_name(layer)!r} has negative norms"))
        return cls(header, norms, sketches)


def _read_header(path: str | Path, metadata: dict[str, str]) -> RecordingHeader:
    text = metadata.get(_METADATA_KEY)
    if text is None:
        raise CalibrationError(_unusable(path, "it is a safetensors file without a gradient recording"))
    try:
        return RecordingHeader.model_validate_json(text)
    except ValidationError as error:
        for problem in error.errors():
            if problem["loc"] == (_VERSION_KEY,):
                known = f"this Trady reads version {SCHEMA_VERSION}"
                raise CalibrationError(_unusable(path, f"it is of version {problem['input']!r}; {known}")) from error
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "header"
        raise CalibrationError(_unusable(path, f"{where}: {first['msg']}")) from error


def _check_tensor(path: str | Path, name: str, tensor: FloatArray, shape: tuple[int, ...]) -> None:
    if tensor.dtype != np.float32 or tensor.shape != shape:
        found = f"{tensor.dtype}{list(tensor.shape)}"
        raise CalibrationError(
            _unusable(path, f"tensor {name!r} is {found}, not the float32{list(shape)} of its header")
        )
    if not np.isfinite(tensor).all():
        raise CalibrationError(_unusable(path, f"tensor {name!r} has values that are not finite"))


def _names(layer: RecordedLayer) -> tuple[str, str]:
    return _norms_name(layer), _sketches_name(layer)


def _norms_name(layer: RecordedLayer) -> str:
    return f"norms/{layer.weight_name}"


def _sketches_name(layer: RecordedLayer) -> str:
    return f"sketches/{layer.weight_name}"


def _unusable(path: str | Path, problem: str) -> str:
    return f"Recording {path} cannot be used: {problem}. {_AGAIN}."
