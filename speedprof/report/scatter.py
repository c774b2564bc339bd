"""Bandwidth against size: a point for each kind of collective and size, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from speedprof.analyses.bandwidth import CollectiveBandwidth
from speedprof.report.answers import format_count
from speedprof.report.charts import LEFT, RIGHT, TOP, Chart, Shape, Tick, px
from speedprof.units import format_bytes

_HEIGHT = 280
_GB = 1e9

# CSS class and outline of each collective's points, by its place; the last is that of all further ones.
_OUTLINES = (
    ("series-1", "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0"),
    ("series-2", "m-3.5-3.5h7v7h-7z"),
    ("series-3", "m0-5l4.5 5l-4.5 5l-4.5-5z"),
    ("series-4", "m0-4.5l4.5 8h-9z"),
    ("series-5", "m-4-4l8 8m0-8l-8 8"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogAxis:
    """Values from `low` to `high`, both above 0, laid from px `start` to px `end` by their logarithm."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + math.log(value / self.low) / math.log(self.high / self.low) * (self.end - self.start)

    def round_values(self) -> list[float]:
        """Powers of ten; where there are fewer than three, their doubles and fivefolds too."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1,), (1, 2, 5)):
            values = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
            inside = [value for value in values if 0.999 * self.low <= value <= 1.001 * self.high]
            if len(inside) >= 3:
                break
        return inside[:: math.ceil(len(inside) / 10)]


def draw_bandwidths(bandwidths: Sequence[CollectiveBandwidth]) -> Chart | None:
    """Bus bandwidth at the median time against size. None where fewer than two kinds of collectives have one."""
    points = [
        (one.name, one.num_bytes, one.bus_bytes_per_s / _GB)
        for one in bandwidths
        if one.bus_bytes_per_s and one.num_bytes > 0
    ]
    if len(points) < 2:
        return None
    sizes, speeds = [size for _, size, _ in points], [speed for *_, speed in points]
    x_axis, y_axis = _axis(sizes, LEFT + 24, RIGHT - 24), _axis(speeds, _HEIGHT - 40, TOP + 8)
    paths: dict[str, list[str]] = {}
    for name, size, speed in points:
        paths.setdefault(name, []).append(f"M{px(x_axis.at(size))} {px(y_axis.at(speed))}")
    marks = {name: _OUTLINES[min(k, len(_OUTLINES) - 1)] for k, name in enumerate(sorted(paths))}
    return Chart(
        title="Bus bandwidth of collectives by size",
        description=f"{format_count(len(points), 'kind')} of collectives by size and bus bandwidth, from "
        f"{format_bytes(min(sizes))} to {format_bytes(max(sizes))} and {min(speeds):.3g} to {max(speeds):.3g} GB/s. "
        "The table below holds every number.",
        height=_HEIGHT,
        shapes=tuple(
            Shape(name=css, label=name, path="".join(place + outline for place in paths[name]))
            for name, (css, outline) in marks.items()
        ),
        x_ticks=tuple(_tick(x_axis, size, _format_size(size)) for size in x_axis.round_values()),
        y_ticks=tuple(_tick(y_axis, speed, f"{speed:g}") for speed in y_axis.round_values()),
        x_name="size",
        y_name="GB/s",
        legend=tuple(Shape(name=css, label=name, path=f"M0 0{outline}") for name, (css, outline) in marks.items()),
    )


def _axis(values: Sequence[float], start: float, end: float) -> LogAxis:
    """An axis that holds all values, over a factor of ten at least."""
    low, high = min(values), max(values)
    widen = max(1.0, (10 * low / high) ** 0.5)
    return LogAxis(low=low / widen, high=high * widen, start=start, end=end)


def _format_size(num_bytes: float) -> str:
    """A round size: `2 MB`."""
    number, unit = format_bytes(round(num_bytes)).split()
    return f"{float(number):g} {unit}"


def _tick(axis: LogAxis, value: float, label: str) -> Tick:
    return Tick(at=round(axis.at(value), 1), label=label)
