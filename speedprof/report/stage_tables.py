"""The stages of the optimizer as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from speedprof.analyses.analysis import RankAnalysis
from speedprof.report.document import Report
from speedprof.report.means import mean_over_ranks, per_what, stage_split, whole_ranks
from speedprof.report.text_table import ABSENT, TextTable
from speedprof.units import format_ms
from speedprof.vocabulary import Stage

STAGES_MEAN = (
    "Host: time inside the stage's range. Device: work that the stage launched, wherever it ran. Exposed: the part of "
    "its collectives with no compute beside it, of it wait before the last rank has begun, transfer after that."
)

_STAGE_ORDER = {stage.value: position for position, stage in enumerate(Stage)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage of one group, in ns per traced step; over several ranks, their mean."""

    stage: str
    group: str
    num_calls: float
    host_ns: float
    device_ns: float
    exposed_ns: float
    wait_ns: float
    transfer_ns: float

    @property
    def is_split(self) -> bool:
        """Whether anything is known of what the exposed time is."""
        return not self.exposed_ns or self.wait_ns + self.transfer_ns > 0


def stage_rows(ranks: Sequence[RankAnalysis]) -> list[StageRow]:
    """The stages of these ranks' traced steps, group by group, each group's in the order in which it passes them."""
    means = mean_over_ranks(ranks, _totals)
    groups = {group: position for position, group in enumerate(dict.fromkeys(group for _, group in means))}
    ordered = sorted(means, key=lambda key: (groups[key[1]], _STAGE_ORDER.get(key[0], len(_STAGE_ORDER)), key[0]))
    return [_stage_row(stage, group, means[stage, group]) for stage, group in ordered]


def stage_table(ranks: Sequence[RankAnalysis], *, title: str) -> TextTable:
    """Every stage; what matters most is exposed, then device, then host time."""
    rows = stage_rows(ranks)
    order = sorted(rows, key=lambda row: (row.exposed_ns, row.device_ns, row.host_ns))
    places = {(row.stage, row.group): place for place, row in enumerate(order)}
    return TextTable(
        title=f"{title}, ms {per_what(ranks)}{', mean over ranks' if len(ranks) > 1 else ''}",
        columns=("group", "stage", "calls", "host", "device", "exposed", "wait", "transfer"),
        rows=tuple(_cells(row) for row in rows),
        num_labels=2,
        weights=tuple(float(places[row.stage, row.group]) for row in rows),
    )


def costliest_stage_table(report: Report) -> TextTable:
    """The stages that cost most, costliest first."""
    ranks = whole_ranks(report.analysis)
    whole = stage_table(ranks, title="Optimizer stages")
    order = sorted(range(len(whole.rows)), key=lambda row: -whole.weights[row])
    return replace(whole, rows=tuple(whole.rows[row] for row in order), weights=(), remark=STAGES_MEAN)


def _totals(rank: RankAnalysis) -> Iterator[tuple[tuple[str, str], tuple[int, ...]]]:
    for one in rank.stages:
        split = stage_split(rank, one.stage, one.group, one.exposed_ns)
        yield (
            (one.stage, one.group),
            (one.num_calls, one.host_ns, one.device_ns, one.exposed_ns, split.wait_ns, split.transfer_ns),
        )


def _stage_row(stage: str, group: str, means: Sequence[float]) -> StageRow:
    num_calls, host_ns, device_ns, exposed_ns, wait_ns, transfer_ns = means
    return StageRow(
        stage=stage,
        group=group,
        num_calls=num_calls,
        host_ns=host_ns,
        device_ns=device_ns,
        exposed_ns=exposed_ns,
        wait_ns=wait_ns,
        transfer_ns=transfer_ns,
    )


def _cells(row: StageRow) -> tuple[str, ...]:
    return (
        row.group,
        row.stage,
        f"{row.num_calls:.3g}",
        format_ms(row.host_ns),
        format_ms(row.device_ns),
        format_ms(row.exposed_ns),
        format_ms(row.wait_ns) if row.is_split else ABSENT,
        format_ms(row.transfer_ns) if row.is_split else ABSENT,
    )
