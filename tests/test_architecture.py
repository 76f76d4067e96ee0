"""The page of the house is that of the code: its picture is made from the imports, its words lie where it says."""

import importlib.util
import re
from pathlib import Path

import pytest

from imports import REPOSITORY


def test_the_picture_of_the_shelves_is_current() -> None:
    pytest.importorskip("grimp")
    spec = importlib.util.spec_from_file_location("architecture", REPOSITORY / "tools" / "architecture.py")
    assert spec is not None and spec.loader is not None
    architecture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(architecture)
    current = (REPOSITORY / "docs" / "architecture.md").read_text()
    assert architecture.page() == current, "run python tools/architecture.py"


@pytest.mark.parametrize("page", ["architecture.md", "glossary.md"])
def test_every_place_that_is_named_is_there(page: str) -> None:
    text = (REPOSITORY / "docs" / page).read_text()
    places = [place for place in re.findall(r"`([\w/]+(?:\.py|/))`", text) if "/" in place]
    places += [place for place in re.findall(r"`((?:planner|engine|simulator)/\w+)`", text)]
    missing = [place for place in places if not any(_exists(place + end) for end in ("", ".py"))]
    assert places and not missing


def _exists(place: str) -> bool:
    return Path(REPOSITORY / place).exists()
