"""Byte sizes to text and back, with pydantic's ``ByteSize`` behind a stricter door."""

import re
from typing import Final

from pydantic import ByteSize, TypeAdapter

from trady.planner.errors import UnitError

_SIZE_TEXT: Final = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?\s*(?:[kmgtpe]|[kmgtpe]i?b|b)?", re.IGNORECASE)
_BITS_TEXT: Final = re.compile(r".*[KMGTPE]i?b")
_BYTE_SIZE: Final = TypeAdapter(ByteSize)


def parse_bytes(size: int | str, *, subject: str = "Budget") -> int:
    """Read a size as a positive whole number of bytes.

    ``ByteSize`` alone reads "1,5MB" as 1 byte and "256KB/s" as 256 KB, so the text must
    first match ``number unit`` in full. "256Kb" means kilobits and is refused; "256kb" is
    what people type for 256 kB.

    Args:
        size: A count of bytes, or text such as ``"256KB"`` (256,000), ``"256KiB"`` (262,144),
            ``"1.5MB"`` or ``"111784B"``.
        subject: What the size is, the first word of an error.

    Raises:
        UnitError: The size is not a number with a byte unit, or is not above zero.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise UnitError(f"{subject} must be a number of bytes or a text such as '256KB', got {size!r}.")
    num_bytes = size if isinstance(size, int) else _parse_text(size.strip(), subject)
    if num_bytes <= 0:
        raise UnitError(f"{subject} must be above zero bytes, got {size!r}. Give for instance 256KB or 1MiB.")
    return num_bytes


def _parse_text(text: str, subject: str) -> int:
    if not _SIZE_TEXT.fullmatch(text) or _BITS_TEXT.fullmatch(text):
        raise UnitError(
            f"{subject} {text!r} is not a size: give a number and a byte unit, "
            "with a point for decimals and no bits or rates, for instance 256KB, 256KiB or 1.5MB."
        )
    return int(_BYTE_SIZE.validate_python(text))


def format_bytes(num_bytes: int) -> str:
    """Show a size in decimal units, to the byte below 1 kB: ``"96.5 kB"``, ``"812 B"``."""
    if abs(num_bytes) < 1000:
        return f"{num_bytes} B"
    value, unit = num_bytes / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if abs(value) < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def format_share(share: float, digits: int = 2) -> str:
    """A share in percent, never rounded to nothing or to all: ``"99.98 %"``, ``"< 0.01 %"``."""
    least = 10.0**-digits
    percent = 100 * share
    if 0 < percent < least:
        return f"< {least:.{digits}f} %"
    if 100 - least < percent < 100:
        return f"> {100 - least:.{digits}f} %"
    return f"{percent:.{digits}f} %"


def format_count(count: int) -> str:
    """A count, to the unit below 10,000: ``"9,999"``, ``"6.8 M"``."""
    if abs(count) < 10_000:
        return f"{count:,}"
    value, unit = count / 1e3, "k"
    for larger in ("M", "G", "T", "P"):
        if abs(value) < 999.95:
            break
        value, unit = value / 1e3, larger
    return f"{value:.1f} {unit}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: ``"1 layer"``, ``"2,000 layers"``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
