"""The public API is written down, and a change of it reaches the changelog."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from imports import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
import public_api


def test_the_listing_is_what_the_doors_export() -> None:
    with public_api.loaded(REPOSITORY) as trady:
        assert public_api.listing(trady) == public_api.LISTING.read_text().splitlines()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of three packages, one function behind a door, committed."""
    for package in public_api.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "planner" / "__init__.pyi").write_text("from .making import make as make\n")
    (tmp_path / "planner" / "making.py").write_text("def make(budget: int) -> str: ...\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n")
    for command in ("init -q", "add .", "-c user.name=n -c user.email=e commit -q -m first"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    monkeypatch.setattr(public_api, "ROOT", tmp_path)
    monkeypatch.setattr(public_api, "CALLBACKS", ())
    return tmp_path


def test_a_change_has_to_be_in_the_changelog(library: Path) -> None:
    unchanged = CliRunner().invoke(public_api.main, ["--since", "HEAD"])
    assert unchanged.exit_code == 0 and "0 lines differ" in unchanged.output
    (library / "planner" / "making.py").write_text("def make(bytes: int) -> str: ...\n")
    silent = CliRunner().invoke(public_api.main, ["--since", "HEAD"])
    assert silent.exit_code == 1
    assert "trady.planner.make(budget: int) -> str" in silent.output and "Parameter was removed" in silent.output
    (library / "CHANGELOG.md").write_text("# Changelog\n\n- `make` takes `bytes`.\n")
    assert CliRunner().invoke(public_api.main, ["--since", "HEAD"]).exit_code == 0


def test_where_there_is_no_such_commit_nothing_is_compared(library: Path) -> None:
    alone = CliRunner().invoke(public_api.main, ["--since", "HEAD~1"])
    assert alone.exit_code == 0 and "nothing to compare" in alone.output
