"""Writing files whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trady.planner.errors import TradyError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: an interrupted write leaves the old one, or none.

    Error:
        TradyError: The file cannot be written.
    """
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` when the block ends well; else the old one stays whole.

    The content reaches the disk before the name does, so that not even a power cut leaves half a file.

    Raises:
        TradyError: The file cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=leftover_prefix(path))
    except OSError as error:
        raise TradyError(_unwritable(path, error)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        cause = _os_error_in(error) if isinstance(error, Exception) else None
        if cause is not None:
            raise TradyError(_unwritable(path, cause)) from error
        raise


def leftover_prefix(path: Path) -> str:
    """How the names of unfinished files begin, which a killed process leaves beside ``path``."""
    return f".{path.name}."


def check_writable(path: Path) -> None:
    """Fail before the work, not after it.

    Raises:
        TradyError: The folder is missing or not writable, or the path is a folder.
    """
    if path.is_dir():
        raise TradyError(f"Output {path} is a folder. Give a file name in it.")
    folder = path.parent
    if not folder.is_dir():
        raise TradyError(f"Output {path}: the folder {folder} does not exist. Make it first.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise TradyError(f"Output {path} cannot be written: permission denied. Choose another place.")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _os_error_in(error: BaseException | None) -> OSError | None:
    """The system's word on a failed write: ``torch.save`` hides it behind an error of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _unwritable(path: Path, error: OSError) -> str:
    return f"Output {path} cannot be written: {error.strerror}. Choose another place."
