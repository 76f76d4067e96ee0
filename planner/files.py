"""Writing files whole or not at all."""

import os
import tempfile
from pathlib import Path

from trady.planner.errors import TradyError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: an interrupted write leaves the old one, or none.

    Raises:
        TradyError: The file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


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


def _unwritable(path: Path, error: OSError) -> TradyError:
    return TradyError(f"Output {path} cannot be written: {error.strerror}. Choose another place.")
