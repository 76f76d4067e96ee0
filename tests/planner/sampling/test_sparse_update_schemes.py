"""The published schemes are well-formed data; their bytes are checked in integration/test_paper_accounting.py."""

import subprocess
import sys

import pytest

from trady.planner.errors import StrategyError
from trady.planner.sampling.sparse_update_schemes import SPARSE_UPDATE_SCHEMES, SparseUpdateScheme, scheme_named

NUM_CONVOLUTIONS = {"mbv2-w0.35": 51, "mcunet-5fps": 42, "proxyless-w0.3": 60}


def test_five_schemes_of_each_network() -> None:
    networks = [scheme.network for scheme in SPARSE_UPDATE_SCHEMES]
    assert {network: networks.count(network) for network in networks} == dict.fromkeys(NUM_CONVOLUTIONS, 5)


def test_names_are_unique_and_ordered_by_label() -> None:
    names = [scheme.name for scheme in SPARSE_UPDATE_SCHEMES]
    assert len(set(names)) == 15
    assert names[0] == "mbv2-49kb"
    assert names[-1] == "proxyless-148kb"
    for network in NUM_CONVOLUTIONS:
        labels = [scheme.label_kib for scheme in SPARSE_UPDATE_SCHEMES if scheme.network == network]
        assert labels == sorted(labels)


@pytest.mark.parametrize("scheme", SPARSE_UPDATE_SCHEMES, ids=lambda scheme: scheme.name)
def test_layers_exist_and_ratios_are_shares(scheme: SparseUpdateScheme) -> None:
    num_convolutions = NUM_CONVOLUTIONS[scheme.network]
    assert list(scheme.layers) == sorted(set(scheme.layers))
    assert 0 < scheme.layers[0] <= scheme.layers[-1] < num_convolutions
    assert all(0 <= ratio <= 1 for ratio in scheme.ratios)
    assert 0 < scheme.num_bias_layers <= num_convolutions


@pytest.mark.parametrize("scheme", SPARSE_UPDATE_SCHEMES, ids=lambda scheme: scheme.name)
def test_every_named_layer_trains_its_bias(scheme: SparseUpdateScheme) -> None:
    assert scheme.layers[0] >= NUM_CONVOLUTIONS[scheme.network] - scheme.num_bias_layers


def test_channel_counts_are_floored_and_drop_bias_only_layers() -> None:
    scheme = SparseUpdateScheme("toy-1kb", "toy", 1, 3, layers=(0, 1, 2), ratios=(0.5, 0.0, 1.0))
    assert scheme.channel_counts([7, 8, 9]) == {0: 3, 2: 9}


def test_scheme_named_finds_each_one() -> None:
    for scheme in SPARSE_UPDATE_SCHEMES:
        assert scheme_named(scheme.name) is scheme


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(StrategyError, match=r"'mcunet-50kb' is not .* one of mbv2-49kb, .*, proxyless-148kb"):
        scheme_named("mcunet-50kb")


def test_layers_and_ratios_must_pair_up() -> None:
    with pytest.raises(StrategyError, match="'toy-1kb' has 2 layers but 1 ratios"):
        SparseUpdateScheme("toy-1kb", "toy", 1, 1, layers=(0, 1), ratios=(1.0,))


def test_schemes_need_no_torch() -> None:
    code = "import sys, trady.planner.sampling.sparse_update_schemes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
