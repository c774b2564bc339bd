"""What every report is made of, and the JSON document that programs read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speedprof import __version__
from speedprof.analyses.analysis import Analysis
from speedprof.analyses.step_time import StepTime
from speedprof.findings import Finding, mean_step_ns
from speedprof.report.comparison_document import collectives_document, straggler_document
from speedprof.report.rank_document import rank_document
from speedprof.report.sections import Section, is_of
from speedprof.run_dir import Manifest
from speedprof.step_log import StepLog

# The versions of the document. Keys may be added within a version; none changes its meaning or goes.
#   1  2026-11-21  the first
#      2026-11-22  added: sections, collectives, stragglers; of a rank exposed_split (also of its steps and stages),
#                  contention_estimate_ns, contention_basis, waited_for, collectives, idle, launches, kernels, and
#                  error_budget.without
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run, or a set of traces without one, ready to be shown.

    Traces from elsewhere have neither `manifest` nor `step_log`. `sources` are the names of what was read, and
    `trace_paths` the trace files among them. `sections` are the parts that were asked for; `findings` are all that
    were made, and `asked_findings` those of these parts.
    """

    analysis: Analysis
    findings: tuple[Finding, ...]
    manifest: Manifest | None
    step_log: StepLog | None
    sources: tuple[str, ...]
    trace_paths: tuple[Path, ...] = ()
    sections: frozenset[Section] = frozenset(Section)

    @property
    def asked_findings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if is_of(finding.slug, self.sections))


def as_document(report: Report) -> dict[str, Any]:
    """The document of `analyze --json` and of report.json. Times are ns, instants ns since the Unix epoch.

    A rank's `window_ns`, `partition`, `exposed_split`, `waited_for` and `contention_estimate_ns` cover its whole
    capture, as does `error_budget.without`: that partition without what is known only in part, kind by kind. Its
    `steps` are the traced training steps, and the times of stages, copies, collectives, kernels, launches, idle gaps
    and `waited_for_in_steps` are totals over them, or over the capture where there are none. A step
    time's `typical_ns` is its median, or where steps alternate (`levels_ns`) its mean; `interval_of` says of which of
    the two the interval is. What a damaged trace cannot tell is null.

    Instants are on each rank's own clock; `offset_ns` of `clocks` is what is added to a rank's to bring it onto the
    common one, so a clock that is ahead has a negative one. Steps and `before_first_step` tile the capture, but for
    validation passes. `idle.capture_by_cause` covers the whole capture, as its `idle_ns` does. Findings cost time per
    step, or of the capture where no trace has steps (`traced_step_ns` is null then).

    `sections` names the parts that the document holds; keys of others are left out. `collectives` is always there
    with its section: `refused_because` says why nothing was matched.

    So that no trace makes a document too large, lists hold at most, costliest first where they are sorted so:
    of each rank 2,000 steps (the first), 500 stages, 100 kinds of collectives, 50 groups of idle gaps, 50 kernels and
    32 ranks waited for; of all ranks 200 bandwidths, 100 kinds of collectives, and 10 slow kernels of a straggler.
    Names are cut after 4,000 characters.
    """
    sections = report.sections
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "speedprof_version": __version__,
        "sections": [section.value for section in Section if section in sections],
        "sources": list(report.sources),
        "damaged_ranks": [rank.rank for rank in report.analysis.ranks if rank.is_damaged],
        "run": run_facts(report.manifest) if report.manifest else None,
        "traced_step_ns": mean_step_ns(report.analysis),
        "findings": [_finding(finding) for finding in report.asked_findings],
    }
    if Section.STEP_TIME in sections:
        document["step_times"] = [_step_time(step_time) for step_time in report.analysis.step_times]
    if sections & {Section.OVERLAP, Section.STRAGGLERS}:
        document["collectives"] = collectives_document(report.analysis)
    if Section.STRAGGLERS in sections:
        document["stragglers"] = [straggler_document(one) for one in report.analysis.stragglers]
    document["ranks"] = [rank_document(rank, sections) for rank in report.analysis.ranks]
    document["notes"] = list(report.analysis.notes)
    return {name: _finite(value) for name, value in document.items()}


def run_facts(manifest: Manifest) -> dict[str, Any]:
    """What a reader must know of a run: which, how it ended, what of, where. None for what was not recorded."""
    git = as_mapping(as_mapping(manifest.environment).get("git"))
    facts = {
        "run_id": manifest.run_id,
        "status": manifest.status.value,
        "failure": manifest.failure,
        "created": manifest.created,
        "preset": _declared(manifest, "preset"),
        "world_size": len(manifest.ranks),
        "device": next((record.device for record in manifest.ranks if record.device), None),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "command": list(manifest.command),
        "plan": manifest.plan,
        "environment": manifest.environment,
        "ranks": [
            {"rank": record.rank, "status": record.status.value, "last_step": record.last_step, "error": record.error}
            for record in manifest.ranks
        ],
    }
    return {name: _finite(value) for name, value in facts.items()}


def as_mapping(value: Any) -> dict[str, Any]:
    """`value` where it is a JSON object, else an empty one: what a manifest holds is not checked so deep."""
    return value if isinstance(value, dict) else {}


def _declared(manifest: Manifest, name: str) -> Any:
    """What the program declared, of the whole run or of its first rank that did."""
    everyone = [as_mapping(manifest.declared), *(as_mapping(record.declared) for record in manifest.ranks)]
    return next((declared[name] for declared in everyone if name in declared), None)


def _finite(value: Any) -> Any:
    """A JSON value with null for what JSON cannot hold: a program may declare NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "slug": finding.slug,
        "severity": finding.severity.value,
        "claim": finding.claim,
        "cost_ns_per_step": finding.cost_ns,
        "evidence": [asdict(evidence) for evidence in finding.evidence],
        "try_next": finding.try_next,
    }


def _step_time(step_time: StepTime) -> dict[str, Any]:
    return asdict(step_time) | {
        "typical_ns": step_time.typical_ns,
        "interval_of": "mean" if step_time.levels_ns else "median",
        "profiler_overhead_ratio": step_time.profiler_overhead_ratio,
    }
