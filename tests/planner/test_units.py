"""Byte sizes as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trady.planner.errors import TradyError, UnitError
from trady.planner.units import format_bytes, parse_bytes

ACCEPTED = {
    "111784B": 111_784,
    "111784": 111_784,
    "111784 b": 111_784,
    "256KB": 256_000,
    "256 KB": 256_000,
    " 256kb ": 256_000,
    "256k": 256_000,
    "256K": 256_000,
    "256KiB": 262_144,
    "256kib": 262_144,
    "256KIB": 262_144,
    "1.5MB": 1_500_000,
    "1.5MiB": 1_572_864,
    "0.5kB": 500,
    "2G": 2_000_000_000,
    "2GiB": 2_147_483_648,
    "1TB": 10**12,
}
REFUSED = (
    "",
    "KB",
    "1,5MB",
    "1 000 KB",
    "256KB/s",
    "256KBps",
    "256Kb",
    "256Kib",
    "8 Mbit",
    "-1KB",
    "+1KB",
    "1e3KB",
    "0x10",
    ".5MB",
    "5.KB",
    "nan",
    "inf",
    "1KB 2KB",
    "1XB",
    "\u0663KB",
    "1" * 400 + "B",
)


@pytest.mark.parametrize(("text", "expected"), ACCEPTED.items())
def test_sizes_with_byte_units_are_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", REFUSED)
def test_everything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UnitError, match=r"is not a size.*for instance 256KB, 256KiB or 1.5MB"):
        parse_bytes(text)


@pytest.mark.parametrize("size", ["0", "0KB", "0.4B", 0, -5])
def test_zero_and_less_are_refused(size: int | str) -> None:
    with pytest.raises(UnitError, match="Budget must be above zero bytes, got"):
        parse_bytes(size)


@pytest.mark.parametrize("size", [None, 1.5, True, b"1KB"])
def test_other_types_are_refused(size: object) -> None:
    with pytest.raises(UnitError, match="Limit must be a number of bytes or a text such as '256KB', got"):
        parse_bytes(size, subject="Limit")  # type: ignore[arg-type]


def test_a_unit_error_is_both_ours_and_a_value_error() -> None:
    assert issubclass(UnitError, TradyError) and issubclass(UnitError, ValueError)


@given(st.integers(1, 10**15))
def test_counts_of_bytes_are_exact_as_number_and_as_text(count: int) -> None:
    assert parse_bytes(count) == parse_bytes(f"{count}B") == parse_bytes(f"{count} b") == count


@given(st.integers(1, 999), st.sampled_from([("k", 1), ("M", 2), ("G", 3), ("T", 4)]))
def test_decimal_and_binary_units(count: int, unit: tuple[str, int]) -> None:
    prefix, power = unit
    assert parse_bytes(f"{count}{prefix}B") == count * 1000**power
    assert parse_bytes(f"{count}{prefix}iB") == count * 1024**power


@given(st.integers(1, 10**15))
def test_what_is_shown_can_be_read_back_to_its_last_digit(count: int) -> None:
    shown = format_bytes(count)
    last_digit = parse_bytes("0.1" + shown.split()[1]) if count >= 1000 else 1
    assert abs(parse_bytes(shown) - count) <= last_digit / 2 + 1
    assert float(shown.split()[0]) < 1000 or shown.endswith("TB")


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (96_500, "96.5 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB")],
)
def test_sizes_as_shown(count: int, shown: str) -> None:
    assert format_bytes(count) == shown
