"""Whole files or none."""

import os
import stat
from pathlib import Path

import pytest

from trady.planner.errors import TradyError
from trady.planner.files import check_writable, write_atomically


def test_content_and_mode_are_those_of_an_ordinary_write(tmp_path: Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.write_text("x")
    write_atomically(ours, "héllo")
    assert ours.read_bytes() == "héllo".encode()
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("stop")])
def test_an_interruption_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")

    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(type(error)):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]  # noqa: PTH208


def test_a_full_disk_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(TradyError, match="cannot be written: No space left on device"):
        write_atomically(tmp_path / "plan.json", "new")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(TradyError, match=r"Output .*plan.json cannot be written: No such file"):
        write_atomically(tmp_path / "none" / "plan.json", "new")


def test_outputs_are_checked_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "plan.json")
    with pytest.raises(TradyError, match=r"is a folder. Give a file name in it"):
        check_writable(tmp_path)
    with pytest.raises(TradyError, match=r"does not exist. Make it first"):
        check_writable(tmp_path / "none" / "plan.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(TradyError, match=r"does not exist. Make it first"):
        check_writable(tmp_path / "file" / "plan.json")


def test_no_permission_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(TradyError, match=r"permission denied. Choose another place"):
        check_writable(tmp_path / "plan.json")
