"""Nanoseconds and bytes as text: the only place where numbers gain units for people."""

from __future__ import annotations

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
NS_PER_DAY = 86_400 * NS_PER_S


def format_ns(ns: int | float) -> str:
    """A duration with three significant figures or more: `850 ns`, `12.3 us`, `4.56 ms`, `61.2 s`."""
    size = abs(ns)
    for limit, unit in ((NS_PER_US, "ns"), (NS_PER_MS, "us"), (NS_PER_S, "ms")):
        if size < limit:
            scaled = ns / (limit / 1_000)
            return f"{scaled:.0f} ns" if unit == "ns" else f"{_three_figures(scaled)} {unit}"
    return f"{_three_figures(ns / NS_PER_S)} s"


def format_ms(ns: int | float) -> str:
    """A duration in milliseconds with three decimals, for columns that are compared: `4.560`."""
    return f"{ns / NS_PER_MS:.3f}"


def format_bytes(num_bytes: int) -> str:
    """A size in decimal units: `512 B`, `4.1 MB`."""
    if num_bytes < 1_000:
        return f"{num_bytes} B"
    scaled = num_bytes / 1_000
    for unit in ("kB", "MB", "GB"):
        if scaled < 1_000:
            return f"{_three_figures(scaled)} {unit}"
        scaled /= 1_000
    return f"{_three_figures(scaled)} TB"


def format_percent(ratio: float) -> str:
    """A ratio from 0 to 1 as percent with one decimal: `12.5%`."""
    return f"{100 * ratio:.1f}%"


def _three_figures(value: float) -> str:
    size = abs(value)
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:.0f}"
