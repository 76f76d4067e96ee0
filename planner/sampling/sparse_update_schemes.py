"""MIT's Sparse Update: its 15 published schemes, which the paper's ``su`` strategy and budgets come from.

Source:
    Lin et al., "On-Device Training Under 256KB Memory", NeurIPS 2022, repository mit-han-lab/tiny-training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trady.planner.errors import StrategyError


@dataclass(frozen=True)
class SparseUpdateScheme:
    """Which layers one scheme trains, and what share of their input channels.

    Convolutions are numbered in the order they run: the stem is 0, then each block's expand,
    depthwise and project.

    Attributes:
        name: Network and label, for instance ``"mbv2-49kb"``.
        network: The network it was searched for, at 128 pixels, for instance ``"mbv2-w0.35"``.
        label_kib: The authors' own figure in whole KiB: stored inputs, masks, weights, biases and
            the classifier's input of the int8 network.
        num_bias_layers: How many of the last convolutions train their bias.
        layers: Numbers of the convolutions named by the scheme, ascending.
        ratios: Share of each one's input channels that are trained, 0 to 1; 0 trains the bias only.
    """

    name: str
    network: str
    label_kib: int
    num_bias_layers: int
    layers: tuple[int, ...]
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.ratios):
            raise StrategyError(f"Scheme '{self.name}' has {len(self.layers)} layers but {len(self.ratios)} ratios.")

    def channel_counts(self, in_channels: Sequence[int]) -> dict[int, int]:
        """How many input channels each convolution trains, by its number; bias-only ones are left out.

        Args:
            in_channels: Input channels of every convolution of the network, in order.
        """
        counts = {
            layer: math.floor(ratio * in_channels[layer]) for layer, ratio in zip(self.layers, self.ratios, strict=True)
        }
        return {layer: count for layer, count in counts.items() if count > 0}


def _scheme(
    network: str, label_kib: int, num_bias_layers: int, layers: tuple[int, ...], ratios: tuple[float, ...]
) -> SparseUpdateScheme:
    name = f"{network.partition('-')[0]}-{label_kib}kb"
    return SparseUpdateScheme(name, network, label_kib, num_bias_layers, layers, ratios)


_MBV2: Final = "mbv2-w0.35"
_MBV2_LARGE: Final = (27, 30, 33, 36, 39, 42, 45, 48)
_MCUNET: Final = "mcunet-5fps"
_PROXYLESS: Final = "proxyless-w0.3"
_PROXYLESS_LARGE: Final = (36, 39, 42, 45, 48, 51, 54, 57)

SPARSE_UPDATE_SCHEMES: Final = (
    _scheme(_MBV2, 49, 16, (36, 39, 40, 41, 42, 45, 48, 49), (1, 1, 0, 0.25, 0.125, 0.125, 0.125, 0.125)),
    _scheme(_MBV2, 73, 20, (32, 33, 36, 39, 41, 42, 45, 48), (0.125, 0.5, 0.5, 1, 0.25, 0.125, 0.125, 1)),
    _scheme(_MBV2, 99, 25, _MBV2_LARGE, (1, 1, 1, 1, 1, 0.125, 0.5, 1)),
    _scheme(_MBV2, 123, 31, _MBV2_LARGE, (1, 1, 1, 1, 1, 0.5, 1, 1)),
    _scheme(_MBV2, 138, 34, _MBV2_LARGE, (1, 1, 1, 1, 1, 1, 1, 1)),
    _scheme(_MCUNET, 49, 20, (23, 24, 27, 30, 33, 39), (0, 0.25, 0.5, 0.5, 0, 0)),
    _scheme(_MCUNET, 74, 21, (21, 23, 24, 26, 27, 30), (1, 0, 1, 0, 0.5, 1)),
    _scheme(_MCUNET, 99, 22, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 0.125, 0.25)),
    _scheme(_MCUNET, 124, 24, (21, 24, 27, 30, 33, 39), (0.25, 1, 1, 1, 0.5, 0.5)),
    _scheme(_MCUNET, 148, 23, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 1, 0.5)),
    _scheme(_PROXYLESS, 49, 21, (39, 42, 44, 45, 50, 51, 54, 57), (0.25, 1, 0, 1, 0, 0.125, 0.25, 0.25)),
    _scheme(_PROXYLESS, 74, 28, (33, 36, 39, 42, 45, 51, 54, 57), (0.5, 0.25, 1, 1, 1, 0.5, 0.25, 0.5)),
    _scheme(_PROXYLESS, 98, 25, _PROXYLESS_LARGE, (1, 0.5, 1, 1, 0.25, 0.5, 1, 1)),
    _scheme(_PROXYLESS, 120, 32, _PROXYLESS_LARGE, (1, 1, 1, 1, 0.5, 1, 1, 1)),
    _scheme(_PROXYLESS, 148, 45, _PROXYLESS_LARGE, (1, 1, 1, 1, 1, 1, 1, 1)),
)


def scheme_named(name: str) -> SparseUpdateScheme:
    """Find a published scheme by its name, for instance ``"mcunet-49kb"``.

    Raises:
        StrategyError: No scheme has this name.
    """
    known = {scheme.name: scheme for scheme in SPARSE_UPDATE_SCHEMES}
    if name not in known:
        raise StrategyError(
            f"Sparse Update scheme '{name}' is not one of the published ones. Give one of {', '.join(known)}."
        )
    return known[name]


def scheme_ratios(scheme: Mapping[str, float] | str | None, convolutions: Sequence[str]) -> Mapping[str, float]:
    """Ratios by layer name of a scheme given so, or by its published name.

    Args:
        scheme: Layer name -> ratio, or the name of a published scheme.
        convolutions: The model's convolutions by name, in order: published schemes count them.

    Returns:
        Layer name -> share of its channels.

    Raises:
        StrategyError: The scheme is missing, unknown, or counts more convolutions than the model has.
    """
    if scheme is None:
        raise StrategyError(
            "Strategy 'su' needs a scheme: layer names and ratios in a JSON file, or a published name such as "
            "'mbv2-49kb' (--scheme)."
        )
    if not isinstance(scheme, str):
        return scheme
    published = scheme_named(scheme)
    missing = [place for place in published.layers if place >= len(convolutions)]
    if missing:
        raise StrategyError(
            f"Scheme {scheme!r} trains convolution {missing[0]}, but the model has {len(convolutions)} of them."
        )
    return {convolutions[place]: ratio for place, ratio in zip(published.layers, published.ratios, strict=True)}
