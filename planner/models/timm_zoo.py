"""Models of timm by name.

Held by ``tests/planner/models/test_loading.py``.
"""

from torch import nn

from trady.planner.errors import LoadingError
from trady.planner.models.factories import (
    BuildOptions,
    Built,
    WeightsOrigin,
    built_quietly,
    closest_name,
    import_package,
    without_weights,
)
from trady.planner.models.hub import hub_host, quick_network


def build_timm(name: str, options: BuildOptions) -> Built:
    """A model of timm, with its weights where they can be had.

    Raises:
        LoadingError: There is no such model.
    """
    timm = import_package("timm", "vision")
    if not timm.is_model(name):
        raise LoadingError(
            f"timm has no model {name!r}.{closest_name(name, timm.list_models(include_tags='.' in name))}"
        )
    built = Built(nn.Module(), options.origin())
    heads = {} if options.num_classes is None else {"num_classes": options.num_classes}
    if options.wants_weights:
        try:
            with quick_network(hub_host()):
                built.model = timm.create_model(name, pretrained=True)
            built.weights = WeightsOrigin.PRETRAINED
            return built
        except Exception as error:
            built.notes.append(without_weights(f"timm:{name}", error))
    built.model = built_quietly(f"timm:{name}", lambda: timm.create_model(name, pretrained=False, **heads), options)
    return built
