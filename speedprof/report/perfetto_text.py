"""Chrome's JSON for slices and tracks, whole columns at a time: a trace has millions of slices.

Every event is text that begins with a comma, since it is written behind another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from speedprof.report.text import make_plain
from speedprof.trace.intervals import Int64s
from speedprof.units import NS_PER_US

# Names and claims longer than this lose their middle.
LONGEST_TEXT = 2_000
# Slices that are made into text at a time: some 5 MB of it, and as much again for each move on its way.
_CHUNK_ROWS = 1 << 15

_DECIMALS = pl.Series([f".{ns:03d}" for ns in range(NS_PER_US)], dtype=pl.String)


def quote(text: str) -> str:
    """A JSON string of `text` on one line, in which what would act instead of showing is written as its code."""
    return json.dumps(make_plain(text, limit=LONGEST_TEXT), ensure_ascii=False)


def quote_column(column: pl.Series) -> pl.Series:
    """Each text as a JSON string, null for null; every distinct text is quoted once."""
    distinct = column.drop_nulls().unique()
    if distinct.is_empty():
        return pl.Series(column.name, [None] * len(column), dtype=pl.String)
    quoted = pl.Series([quote(text) for text in distinct.cast(pl.String).to_list()], dtype=pl.String)
    return column.replace_strict(distinct, quoted, default=None, return_dtype=pl.String)


def label(name: pl.Series, category: pl.Series | str) -> pl.Series:
    """The members `name` and `cat` of each slice, from texts that are not yet quoted."""
    both = pl.DataFrame([quote_column(name).alias("name")])
    cat = pl.lit(quote(category)) if isinstance(category, str) else quote_column(category)
    return both.select(pl.concat_str(pl.lit(',"name":'), "name", pl.lit(',"cat":'), cat)).to_series()


def list_arguments(**columns: pl.Expr) -> pl.Expr:
    """The members of `args` of each slice from columns of numbers and quoted texts; what is null is left out."""
    parts = [
        pl.concat_str(pl.lit(f',"{name}":'), column.cast(pl.String)).fill_null("") for name, column in columns.items()
    ]
    return pl.concat_str(parts)


def arguments(listed: pl.Expr) -> pl.Expr:
    """The member `args` of each slice, nothing where nothing is listed."""
    inner = listed.str.strip_prefix(",")
    return pl.when(inner == "").then(pl.lit("")).otherwise(pl.concat_str(pl.lit(',"args":{'), inner, pl.lit("}")))


def format_metadata(name: str, pid: int, tid: int | None, args: Mapping[str, Any]) -> bytes:
    """An event that names or sorts a process (`tid` None) or a thread."""
    thread = {} if tid is None else {"tid": tid}
    event = {"ph": "M", "name": name, "pid": pid, **thread, "args": args}
    return b",\n" + json.dumps(event, ensure_ascii=False).encode()


def format_slices(slices: pl.DataFrame, tid: Int64s, pid: int, shift_ns: int) -> Iterator[bytes]:
    """Complete events, in the order of the rows, in pieces of some 5 MB.

    `slices` has the columns `start_ns`, `end_ns`, `label` and `more`; `shift_ns` is added to the times. Times are µs
    with three decimals, exact to the ns.
    """
    head = pl.lit(f',\n{{"ph":"X","pid":{pid},"tid":')
    for first in range(0, len(slices), _CHUNK_ROWS):
        rows = slices.slice(first, _CHUNK_ROWS)
        columns = pl.DataFrame(
            {
                "tid": tid[first : first + _CHUNK_ROWS],
                "ts": _microseconds(rows["start_ns"] + shift_ns),
                "dur": _microseconds((rows["end_ns"] - rows["start_ns"]).clip(lower_bound=0)),
                "label": rows["label"],
                "more": rows["more"],
            }
        )
        text = pl.concat_str(
            head,
            pl.col("tid").cast(pl.String),
            pl.lit(',"ts":'),
            "ts",
            pl.lit(',"dur":'),
            "dur",
            "label",
            "more",
            pl.lit("}"),
        )
        yield columns.select(text.str.join("")).item().encode()


def _microseconds(ns: pl.Series) -> pl.Series:
    size = ns.abs()
    parts = pl.DataFrame(
        [(size // NS_PER_US).cast(pl.String).alias("whole"), _DECIMALS.gather(size % NS_PER_US).alias("decimals")]
    )
    sign = [pl.Series("sign", ns < 0).replace_strict([True, False], ["-", ""])] if (ns < 0).any() else []
    return parts.select(pl.concat_str(*sign, "whole", "decimals")).to_series()
