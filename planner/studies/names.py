"""What rows of a study are called: by what varies among them. No torch.

Held by ``tests/planner/studies/test_answers.py``.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from trady.planner.studies.rows import Setting

_AXES: Final = ("model", "input", "norm", "dtype", "batch_size", "optimizer")


class Names:
    """Names of settings among others.

    Args:
        settings: All of them.
    """

    def __init__(self, settings: Iterable[Setting]) -> None:
        found = list(settings)
        self.axes = _varying(found)
        sources = {setting.model for setting in found}
        short = {source: short_model(source) for source in sources}
        self._models = short if len(set(short.values())) == len(sources) else {source: source for source in sources}

    def of(self, setting: Setting, axes: Sequence[str] | None = None) -> str:
        """A setting by what varies: ``batch 8, adamw``; the model where nothing does.

        Args:
            setting: One of them.
            axes: Other axes than those that vary.
        """
        texts = {
            "model": self.model(setting),
            "input": setting.input,
            "norm": f"norms {setting.norm.value}",
            "dtype": setting.dtype.value if setting.dtype else "own types",
            "batch_size": f"batch {setting.batch_size}",
            "optimizer": setting.optimizer.value,
        }
        return ", ".join(texts[axis] for axis in (self.axes if axes is None else axes)) or texts["model"]

    def model(self, setting: Setting) -> str:
        """The model without library, module or folder, unless two would be called the same."""
        return self._models.get(setting.model, setting.model)


def _varying(settings: Sequence[Setting]) -> list[str]:
    """Axes that take more than one value, the budget left out, in a setting's order.

    Models of input sizes of their own are told apart by their names alone.
    """
    axes = [axis for axis in _AXES if len({getattr(setting, axis) for setting in settings}) > 1]
    sizes = {(setting.model, setting.input) for setting in settings}
    if len(sizes) == len({setting.model for setting in settings}) and "model" in axes:
        axes = [axis for axis in axes if axis != "input"]
    return axes


def short_model(source: str) -> str:
    """A model's name without the library, module or folder it came from."""
    return source.replace("\\", "/").rsplit("/", 1)[-1].rsplit(":", 1)[-1] or source
