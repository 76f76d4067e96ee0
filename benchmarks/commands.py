"""How and where a measurement was made, to be written beside its figures."""

import platform
import shlex
import sys
from typing import Any

import torch


def command() -> str:
    """The command line as one types it in the repository's root: ``python -m benchmarks.study --repeats 3``."""
    main = sys.modules["__main__"].__spec__
    started = sys.argv[:1] if main is None else ["-m", main.name.removesuffix(".__main__")]
    return shlex.join(["python", *started, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Where and with what the figures were made."""
    import timm
    import torchvision
    import transformers

    return {
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
    }
