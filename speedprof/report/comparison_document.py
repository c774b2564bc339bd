"""What the JSON document says of the ranks together: their collectives and their stragglers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from speedprof.analyses.analysis import Analysis
from speedprof.analyses.bandwidth import CollectiveBandwidth
from speedprof.analyses.clocks import RankClock
from speedprof.analyses.exposure import CollectiveTime
from speedprof.analyses.stragglers import Straggler
from speedprof.report.means import add_splits, whole_ranks
from speedprof.report.rank_document import with_short_names

MOST_BANDWIDTHS = 200
MOST_KINDS = 100
MOST_SLOW_KERNELS = 10


def collectives_document(analysis: Analysis) -> dict[str, Any]:
    match = analysis.match
    return {
        "matched": match.num_matched if match else 0,
        "of": match.num_matchable if match else 0,
        "certainty": match.certainty if match else None,
        "refused_because": match.refused_because if match else why_nothing_matched(analysis),
        "clocks": [_clock(clock) for clock in match.clocks] if match else [],
        "bandwidth": list(_bandwidths(analysis.bandwidths)),
        "kinds": _kinds(analysis)[:MOST_KINDS],
    }


def _clock(clock: RankClock) -> dict[str, Any]:
    """Nothing is known of a clock that no collective was held against."""
    known = clock.num_collectives > 0
    return asdict(clock) | {
        "offset_ns": clock.offset_ns if known else None,
        "residual_ns": clock.residual_ns if known else None,
    }


def why_nothing_matched(analysis: Analysis) -> str:
    """Why there is no match at all, as a clause."""
    if not analysis.ranks:
        return "there is no trace"
    damaged = " that is whole" if any(rank.is_damaged for rank in analysis.ranks) else ""
    return f"no trace{damaged} holds a collective"


def straggler_document(straggler: Straggler) -> dict[str, Any]:
    return {
        "rank": straggler.rank,
        "cost_ns_per_step": straggler.cost_ns,
        "cost_interval_ns_per_step": straggler.cost_interval_ns,
        "gain_ns_per_step": straggler.gain_ns,
        "as_late": straggler.as_late,
        "share": straggler.share,
        "p_value": straggler.p_value,
        "num_units": straggler.num_units,
        "unit": straggler.unit,
        "cause": straggler.cause.value,
        "excess_ns_per_step": dict(straggler.excess_ns),
        "slow_kernels": [with_short_names(asdict(one)) for one in straggler.slow_kernels[:MOST_SLOW_KERNELS]],
    }


def _bandwidths(bandwidths: tuple[CollectiveBandwidth, ...]) -> Iterator[dict[str, Any]]:
    """Those that take most time, in their order."""
    order = sorted(range(len(bandwidths)), key=lambda at: -bandwidths[at].count * bandwidths[at].median_ns)
    for at in sorted(order[:MOST_BANDWIDTHS]):
        one = bandwidths[at]
        yield with_short_names(asdict(one)) | {"bus_bytes_per_s": one.bus_bytes_per_s}


def _kinds(analysis: Analysis) -> list[dict[str, Any]]:
    """Collectives by name, stage and group, totals over all ranks and their traced steps, the most exposed first."""
    found: dict[tuple[str, str | None, str | None], list[CollectiveTime]] = {}
    for rank in whole_ranks(analysis):
        for one in rank.exposure.collectives if rank.exposure else ():
            found.setdefault((one.name, one.stage, one.group), []).append(one)
    kinds = [
        {
            **with_short_names({"name": name, "stage": stage, "group": group}),
            "count": sum(one.count for one in parts),
            "time_ns": sum(one.time_ns for one in parts),
            "hidden_ns": sum(one.hidden_ns for one in parts),
            "exposed_split": asdict(add_splits(one.split for one in parts)),
        }
        for (name, stage, group), parts in found.items()
    ]
    return sorted(kinds, key=lambda kind: -sum(kind["exposed_split"].values()))
