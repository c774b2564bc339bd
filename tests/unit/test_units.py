"""Numbers become text with three significant figures and the unit that fits."""

import pytest

from speedprof.units import format_bytes, format_ms, format_ns, format_percent


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (850, "850 ns"),
        (999, "999 ns"),
        (1_000, "1.00 us"),
        (12_345, "12.3 us"),
        (999_400, "999 us"),
        (4_560_000, "4.56 ms"),
        (61_200_000_000, "61.2 s"),
        (3_600_000_000_000, "3600 s"),
        (-4_560_000, "-4.56 ms"),
        (1_500.5, "1.50 us"),
    ],
)
def test_a_duration_has_three_figures_and_its_unit(ns: float, text: str) -> None:
    assert format_ns(ns) == text


def test_a_duration_for_a_column_is_milliseconds_with_three_decimals() -> None:
    assert [format_ms(ns) for ns in (4_560_000, 1_234, 0)] == ["4.560", "0.001", "0.000"]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (4_100_000, "4.10 MB"),
        (529_000_000, "529 MB"),
        (64_000_000_000, "64.0 GB"),
        (2_500_000_000_000, "2.50 TB"),
    ],
)
def test_a_size_has_decimal_units(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_a_ratio_is_percent_with_one_decimal() -> None:
    assert [format_percent(ratio) for ratio in (0.0, 0.125, 1.0)] == ["0.0%", "12.5%", "100.0%"]
