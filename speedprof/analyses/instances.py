"""What is known of each matched collective as a whole: which one, of what size, and how long its transfer took."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from speedprof.analyses.declared import collective_name
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline


def describe_complete(ranks: Sequence[RankTimeline], match: CollectiveMatch) -> pl.DataFrame:
    """A row for each collective of which every rank's part is known, in the order of `collective`.

    Columns: `collective`, `name`, `dtype`, `in_elements` and `out_elements` (of the rank that gives or gets most; null
    where no rank's file says), `group_size`, and `transfer_ns`, from the start of the last rank to the end of the last.
    """
    described = [
        rank.collectives.select(
            pl.lit(rank.rank, dtype=pl.Int64).alias("rank"),
            pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
            collective_name().alias("name"),
            pl.col("dtype").cast(pl.String),
            "in_elements",
            "out_elements",
        )
        for rank in ranks
    ]
    if match.instances.is_empty():
        return _EMPTY
    complete = match.instances.filter(pl.col("is_complete"))
    return (
        complete.join(pl.concat(described), on=["rank", "row"])
        .group_by("collective")
        .agg(
            pl.col("name", "dtype").drop_nulls().first(),
            pl.col("in_elements", "out_elements").max(),
            pl.len().cast(pl.Int64).alias("group_size"),
            (pl.col("end_ns").max() - pl.col("last_start_ns").first()).alias("transfer_ns"),
        )
        .sort("collective")
    )


_EMPTY = pl.DataFrame(
    schema={
        "collective": pl.Int64(),
        "name": pl.String(),
        "dtype": pl.String(),
        "in_elements": pl.Int64(),
        "out_elements": pl.Int64(),
        "group_size": pl.Int64(),
        "transfer_ns": pl.Int64(),
    }
)
