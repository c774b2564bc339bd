"""The collectives of several ranks in one table, each with the group of ranks that takes part in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from speedprof.analyses.alignment import KEYS, UNKNOWN, Spans
from speedprof.analyses.declared import collective_name
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Bools, Int64s
from speedprof.trace.model import Timeline
from speedprof.trace.schema import to_numpy

# Every rank has one size of these, the larger of what it gives and gets. All others may carry other sizes on each rank.
_OF_ONE_SIZE = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce")
# On devices the ends of these lie close together: no rank has all it needs before every rank has begun, and then all
# have it at about one time. The root of a broadcast may be through before the others begin, in an exchange of unequal
# amounts a rank with little to do ends early, and on hosts the operating system decides when a thread goes on.
_ENDS_TOGETHER = ("all_reduce", "reduce_scatter", "all_gather", "barrier")
# What PyTorch calls collectives that NCCL carries out with kernels named for sending and receiving.
_BY_SENDING = r"all_?to_?all|all2all|gather|scatter"
_POINT_TO_POINT = r"send|recv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks that communicate as one: the places of the traced ones among the ranks given, and how many there are.

    `is_listed`: the file lists its ranks; else those that name it, or all, are taken to be one group. `is_size_known`:
    the file tells how many ranks it has, or how many the run has; else no more than were traced are taken to be.
    """

    traced: tuple[int, ...]
    size: int
    is_listed: bool
    is_size_known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Each rank's parts of collectives, sorted by rank and start; times in ns.

    `rank` is the place of the rank among those given, `row` the row in its table of collectives, `stream` the stream,
    UNKNOWN where there is none. `group` numbers
    `groups`, the last of which is every rank: that of kernels about whose group nobody knows anything. `keys` has a
    column for each of KEYS, UNKNOWN where the file does not say; `tag` numbers what the file itself says is one
    collective, by group and sequence number. `is_exchange`: a sending or receiving kernel of a group of more than two,
    of which the file does not say whether all ranks of the group take part.
    """

    rank: Int64s
    row: Int64s
    group: Int64s
    name: Int64s
    stream: Int64s
    keys: Int64s
    start: Int64s
    end: Int64s
    ends_together: Bools
    is_exchange: Bools
    groups: tuple[Group, ...]
    on_host: bool

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def has_group(self) -> Bools:
        return self.group < len(self.groups) - 1

    @property
    def kind(self) -> Int64s:
        """A number for each group and name: parts of one collective are of one kind."""
        return self.name * len(self.groups) + self.group

    @property
    def are_shared(self) -> bool:
        """Whether any name is of parts of two ranks or more."""
        return any(len(np.unique(self.rank[self.name == name])) > 1 for name in np.unique(self.name))

    @property
    def tag(self) -> Int64s:
        return self.keys[:, KEYS.index("tag")]

    @property
    def spans(self) -> Spans:
        return Spans(kind=self.kind, start=self.start, end=self.end, keys=self.keys)

    def take(self, rows: Int64s | Bools) -> Parts:
        return replace(self, **{name: getattr(self, name)[rows] for name in _ARRAYS})

    def shifted(self, offset_ns: Int64s) -> Parts:
        """The same where each rank's times gain its offset."""
        by = offset_ns[self.rank]
        return replace(self, start=self.start + by, end=self.end + by)


_ARRAYS = ("rank", "row", "group", "name", "stream", "keys", "start", "end", "ends_together", "is_exchange")


def gather_parts(ranks: Sequence[RankTimeline]) -> Parts:
    """The parts of all collectives that can be matched over these ranks.

    Left out are those of groups of which one rank alone is traced, or of which nobody says which ranks they are; and
    messages from one rank to another in larger groups: the file does not say which two exchange them.
    """
    table = _number_texts(_know_groups_by_stream(_name_groups(_stack(ranks))))
    table, groups = _find_groups(table, ranks)
    size = pl.Series("ranks", [len(group.traced) for group in groups], dtype=pl.Int64)
    total = pl.Series("total", [group.size for group in groups], dtype=pl.Int64)
    table = _know_sending(
        table.with_columns(traced=size.gather(table["group"]), total=total.gather(table["group"]))
    ).filter((pl.col("traced") > 1) & ~pl.col("is_message"))
    table = _tag(table.with_columns(elements=pl.when("of_one_size").then("elements").otherwise(UNKNOWN)))
    return Parts(
        **{name: to_numpy(table[name]) for name in ("rank", "row", "group", "name", "stream", "start", "end")},
        keys=np.stack([to_numpy(table[name]) for name in KEYS], axis=1),
        ends_together=table["ends_together"].to_numpy(),
        is_exchange=table["is_exchange"].to_numpy(),
        groups=groups,
        on_host=any(rank.timeline is Timeline.HOST for rank in ranks),
    )


def _stack(ranks: Sequence[RankTimeline]) -> pl.DataFrame:
    does = collective_name()
    declared = pl.col("declared_name").cast(pl.String)
    known = pl.col("in_elements").is_not_null() & pl.col("out_elements").is_not_null()
    tables = [
        rank.collectives.select(
            pl.lit(place, dtype=pl.Int64).alias("rank"),
            pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
            "name",
            pl.col("declared_name").alias("declared"),
            "dtype",
            pl.when(known).then(pl.max_horizontal("in_elements", "out_elements")).alias("elements"),
            pl.col("group_size").alias("size"),
            "process_group",
            "group_ranks",
            "seq",
            "stream",
            pl.col("start_ns").alias("start"),
            pl.col("end_ns").alias("end"),
            does.is_in(_OF_ONE_SIZE).alias("of_one_size"),
            (does.is_in(_ENDS_TOGETHER) & (rank.timeline is Timeline.DEVICE)).alias("ends_together"),
            (pl.col("name").cast(pl.String) == "send_recv").alias("is_sending"),
            declared.str.contains(_BY_SENDING).fill_null(False).alias("by_sending"),
            (declared.str.contains(_POINT_TO_POINT) & ~declared.str.contains(_BY_SENDING))
            .fill_null(False)
            .alias("is_message"),
        )
        for place, rank in enumerate(ranks)
    ]
    return pl.concat(tables)


def _name_groups(table: pl.DataFrame) -> pl.DataFrame:
    """With `label`, which tells groups apart; null where the file says nothing.

    Groups of one name on other ranks are others, as the tensor-parallel groups of a large model are. So are groups of
    other names on the same ranks: each has an order of its own. Only where each rank has one name for a set of ranks
    is the name left aside, since ranks may number their groups differently.
    """
    text = pl.col("group_ranks").cast(pl.String)
    ranks = pl.when(text.str.contains(r"\d")).then(text)
    table = table.with_columns(
        ranks=ranks, num_names=pl.col("process_group").drop_nulls().n_unique().over("rank", "group_ranks")
    )
    has_more = pl.col("ranks").is_null() | (pl.col("num_names").max().over("group_ranks") > 1)
    name = pl.when(has_more).then(pl.col("process_group").cast(pl.String))
    known = pl.col("ranks").is_not_null() | pl.col("process_group").is_not_null()
    label = pl.when(known).then(pl.concat_str(name.fill_null(""), pl.lit("\0"), pl.col("ranks").fill_null("")))
    return table.with_columns(label=label)


def _know_groups_by_stream(table: pl.DataFrame) -> pl.DataFrame:
    """Give kernels without a group that of their stream, where their rank's stream carries one group alone."""
    place = ["rank", "stream"]
    is_known = pl.col("label").is_not_null()
    alone = (pl.col("label").drop_nulls().n_unique().over(place) == 1) & pl.col("stream").is_not_null()
    fill = [
        pl.when(is_known | ~alone).then(name).otherwise(pl.col(name).drop_nulls().first().over(place)).alias(name)
        for name in ("label", "ranks", "size")
    ]
    return table.with_columns(fill) if table["label"].null_count() < len(table) else table


def _number_texts(table: pl.DataFrame) -> pl.DataFrame:
    """With numbers for texts, and UNKNOWN for null."""
    ranked = [
        pl.col(name).cast(pl.String).rank("dense").cast(pl.Int64).fill_null(UNKNOWN).alias(name)
        for name in ("name", "declared", "dtype")
    ]
    # A sender calls its message another thing than the receiver does.
    declared = pl.when(pl.col("is_sending")).then(UNKNOWN).otherwise(ranked[1]).alias("declared")
    numbers = [pl.col(name).fill_null(UNKNOWN) for name in ("elements", "size", "seq", "stream")]
    return table.with_columns(ranked[0], declared, ranked[2], *numbers)


def _find_groups(table: pl.DataFrame, ranks: Sequence[RankTimeline]) -> tuple[pl.DataFrame, tuple[Group, ...]]:
    """The table with `group`, and the groups: those that have a label, and last the group of all ranks."""
    labels = (
        table.filter(pl.col("label").is_not_null())
        .group_by("label", maintain_order=True)
        .agg(pl.col("ranks").first(), pl.col("size").max(), pl.col("rank").unique().sort())
        .sort("label")
    )
    groups = [
        _make_group(text, size, carriers, ranks)
        for text, size, carriers in labels.select("ranks", "size", "rank").iter_rows()
    ]
    every, size = tuple(range(len(ranks))), _size_of_run(ranks)
    groups.append(Group(traced=every, size=size or len(ranks), is_listed=False, is_size_known=size is not None))
    numbers = labels.select("label").with_row_index("group").with_columns(pl.col("group").cast(pl.Int64))
    numbered = table.join(numbers, on="label", how="left", maintain_order="left")
    numbered = numbered.with_columns(pl.col("group").fill_null(len(labels)))
    # A kernel that says how large its group is, but not which, is of no known group unless it is of all ranks.
    is_lost = (pl.col("group") == len(labels)) & pl.col("size").is_between(0, len(ranks) - 1)
    return numbered.filter(~is_lost), tuple(groups)


def _make_group(text: str | None, size: int, carriers: list[int], ranks: Sequence[RankTimeline]) -> Group:
    """The group that a file lists as `[0, 1, 2, 3]`, or by nothing but its name; `size` is UNKNOWN where not known."""
    if text is not None and "..." not in text:
        members = {int(digits) for digits in text.strip("[] ").split(",") if digits.strip().isdecimal()}
        traced = sorted({*carriers, *(place for place, rank in enumerate(ranks) if rank.rank in members)})
        return Group(traced=tuple(traced), size=max(len(members), len(traced)), is_listed=True, is_size_known=True)
    is_listed = text is not None
    if UNKNOWN < size < len(carriers):
        # More ranks than the group has carry its name: several groups of one name, and nobody says who is in which.
        return Group(traced=(), size=size, is_listed=is_listed, is_size_known=True)
    known = size if size != UNKNOWN else _size_of_run(ranks)
    is_known = known is not None
    return Group(traced=tuple(carriers), size=known or len(ranks), is_listed=is_listed, is_size_known=is_known)


def _size_of_run(ranks: Sequence[RankTimeline]) -> int | None:
    """How many ranks the run has, None where no file says it."""
    sizes = [rank.world_size for rank in ranks if rank.world_size]
    return max(len(ranks), *sizes) if sizes else None


def _know_sending(table: pl.DataFrame) -> pl.DataFrame:
    """With `is_message` for what passes between two ranks of more, and `is_exchange` for what may be that or not."""
    is_apart = pl.col("is_sending") & (pl.col("total") > 2)
    # Nothing is said of a kernel launched before the capture: it does what others of its stream do.
    among_messages = pl.col("is_message").any().over("rank", "stream") & pl.col("stream").is_not_null()
    is_message = is_apart & (pl.col("is_message") | (among_messages & ~pl.col("by_sending")))
    return table.with_columns(is_message=is_message, is_exchange=is_apart & ~is_message & ~pl.col("by_sending"))


def _tag(table: pl.DataFrame) -> pl.DataFrame:
    """With `tag`: the same number for what has the same group, name and sequence number.

    Where several kernels of a rank carry one sequence number, as coalesced collectives do, they are numbered in order.
    Messages between two ranks are counted by each of them in its own way.
    """
    counts = ~pl.col("is_sending") | pl.col("by_sending")
    known = (pl.col("seq") > UNKNOWN) & pl.col("label").is_not_null() & counts
    nth = pl.int_range(pl.len()).over("rank", "group", "name", "seq")
    tag = pl.struct("group", "name", "seq", nth.alias("nth")).rank("dense").cast(pl.Int64)
    return table.with_columns(tag=pl.when(known).then(tag).otherwise(UNKNOWN))
