"""The findings as tracks of the Perfetto file: where on the timeline each one's evidence lies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from speedprof.findings import Evidence, Finding
from speedprof.report.perfetto_clock import FileClock
from speedprof.report.perfetto_text import LONGEST_TEXT
from speedprof.report.perfetto_tracks import SLICE_SCHEMA, TrackGroup
from speedprof.report.text import make_plain
from speedprof.units import format_ns


def make_findings_track(findings: Sequence[Finding], clock: FileClock) -> TrackGroup:
    """A track for each finding, in their order, and on it a slice for each piece of evidence, on the file's clock.

    Evidence outside the traces, such as a slow step before the profiler began, would stretch the view until nothing
    could be seen in it: it is drawn as an instant where the traces begin, and says where it lies.
    """
    rows = [
        {"track": track, **_draw(finding, evidence, clock)}
        for track, finding in enumerate(findings)
        for evidence in finding.evidence
    ]
    names = tuple(
        finding.slug + (f", {format_ns(finding.cost_ns)} a step" if finding.cost_ns else "") for finding in findings
    )
    return TrackGroup(names=names, slices=pl.DataFrame(rows, schema=SLICE_SCHEMA), may_nest=False)


def _draw(finding: Finding, evidence: Evidence, clock: FileClock) -> dict[str, Any]:
    """The slice of one piece of evidence."""
    span, offset_ns = clock.span, clock.offset_ns(evidence.rank)
    start_ns, end_ns = evidence.start_ns + offset_ns, max(evidence.end_ns, evidence.start_ns) + offset_ns
    outside = _say_outside(start_ns, end_ns, span)
    if span is not None and outside is not None:
        start_ns = end_ns = span[0]
    place = f"rank {evidence.rank}" + ("" if evidence.step is None else f", step {evidence.step}")
    args: dict[str, str | int | None] = {
        "claim": finding.claim,
        "cost_ns_per_step": finding.cost_ns,
        "try_next": finding.try_next,
        "severity": finding.severity.value,
        "rank": evidence.rank,
        "step": evidence.step,
        "lies": outside,
    }
    known = {name: _plain(value) for name, value in args.items() if value is not None}
    return {
        "start_ns": start_ns,
        "end_ns": end_ns,
        "label": f',"name":{json.dumps(_plain(f"{finding.slug}: {place}"))},"cat":"finding"',
        "more": f',"args":{json.dumps(known, ensure_ascii=False)}',
    }


def _say_outside(start_ns: int, end_ns: int, span: tuple[int, int] | None) -> str | None:
    if span is None or (end_ns >= span[0] and start_ns <= span[1]):
        return None
    if end_ns < span[0]:
        return f"{format_ns(span[0] - start_ns)} before the beginning of the trace"
    return f"{format_ns(start_ns - span[1])} after the end of the trace"


def _plain(value: str | int) -> str | int:
    return make_plain(value, limit=LONGEST_TEXT) if isinstance(value, str) else value
