"""Models by name, whichever library has them.

Held by ``tests/planner/models/test_loading.py``.
"""

from trady.planner.errors import LoadingError
from trady.planner.models.factories import BuildOptions, Built, build_from_function
from trady.planner.models.timm_zoo import build_timm
from trady.planner.models.torchvision_zoo import build_torchvision
from trady.planner.models.transformers_zoo import build_transformers


def build(text: str, options: BuildOptions) -> Built:
    """Build a model from ``torchvision:NAME``, ``timm:NAME``, ``transformers:NAME`` or ``package.module:function``.

    Raises:
        LoadingError: The name is unknown, its package is missing, or building fails.
    """
    library, _, name = text.partition(":")
    builders = {"torchvision": build_torchvision, "timm": build_timm, "transformers": build_transformers}
    if not name:
        raise LoadingError(f"Model {text!r} lacks a name after the colon. Give for instance torchvision:mobilenet_v2.")
    built = builders[library](name, options) if library in builders else build_from_function(text, options)
    built.arch = text
    return built
