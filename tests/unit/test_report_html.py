from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hand_made import (
    HOSTILE_NAMES,
    alternating_log,
    analysis,
    breakdown,
    damaged_report,
    empty_report,
    idle_gaps,
    manifest,
    partition,
    rank_analysis,
    run_log,
    small_report,
    stage,
    step_log,
    step_rows,
    two_ranks,
)
from hand_made_results import (
    BANDWIDTHS,
    full_analysis,
    full_report,
    hostile_report,
    kernel,
    match,
    split,
    two_full_ranks,
    wait,
)

from speedprof.analyses.idle_gaps import GapCause
from speedprof.findings import find_all
from speedprof.report.bars import draw_exposed, draw_idle, draw_mean_steps
from speedprof.report.certainty_tables import without_table
from speedprof.report.charts import Axis, draw_step_times, draw_steps
from speedprof.report.console import TABLES
from speedprof.report.document import Report
from speedprof.report.html import format_html, write_html
from speedprof.report.scatter import draw_bandwidths
from speedprof.report.sections import Section
from speedprof.run_dir import RunStatus


class Page(HTMLParser):
    """The elements and the text of a page; void elements and SVG included."""

    _VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def large_report() -> Report:
    """Eight ranks with more of everything than a page shows."""
    stages = tuple(stage(name, f"muon.{k}", 300) for k in range(12) for name in ("reduce_scatter", "all_gather"))
    full = two_full_ranks()[0]
    assert full.exposure is not None
    exposure = replace(
        full.exposure,
        steps=(split(500, 900, 100),) * 50,
        waits=tuple(wait(k, compute=100 + k) for k in range(8)),
        collectives=tuple(replace(full.exposure.collectives[0], name=f"kind {k}") for k in range(500)),
    )
    groups = tuple(replace(full.idle.groups[0], range=f"range {k}") for k in range(2_000))
    ranks = tuple(
        replace(
            full,
            rank=rank,
            stages=stages,
            breakdown=breakdown(rank, [partition(8_000, 1_500, 100, 400)] * 50),
            exposure=replace(exposure, rank=rank),
            idle=idle_gaps(dict.fromkeys(GapCause, 2_000_000), groups),
            kernels=tuple(kernel(f"void kernel<{k}, {'x' * 2_000}>", k) for k in range(2_000)),
        )
        for rank in range(8)
    )
    log = run_log(8, num_clean=1_000)
    measured = analysis(ranks, log, match=match(offset_ns=9_000), bandwidths=BANDWIDTHS * 40)
    return Report(
        analysis=measured, findings=find_all(measured), manifest=manifest(num_ranks=8), step_log=log, sources=("x",)
    )


@cache
def reports() -> dict[str, Report]:
    failed = replace(small_report(), manifest=manifest(status=RunStatus.FAILED, failure="rank 1 died"))
    only_log = replace(empty_report(), step_log=run_log(1), analysis=analysis((), run_log(1)))
    only_trace = replace(small_report(), manifest=None, step_log=None)
    one_step = step_log(step_rows(0, "clean", 5, [1]))
    return {
        "small": small_report(),
        "empty": empty_report(),
        "failed": failed,
        "only a step log": only_log,
        "only a trace": only_trace,
        "one step": replace(empty_report(), step_log=one_step, analysis=analysis((), one_step)),
        "an empty log": replace(empty_report(), step_log=step_log([])),
        "a trace without steps": replace(empty_report(), analysis=analysis((rank_analysis(0, []),))),
        "large": large_report(),
        "full": full_report(full_analysis(offset_ns=7_000)),
        "a refusal": full_report(replace(full_analysis(), match=match(refused_because="the names differ"))),
        "many steps": replace(empty_report(), analysis=analysis((rank_analysis(0, [partition(9, 1, 0, 0)] * 20_000),))),
    }


@pytest.fixture(params=list(reports()))
def report(request: pytest.FixtureRequest) -> Report:
    return reports()[request.param]


def test_the_page_is_well_formed_small_and_loads_nothing(report: Report, tmp_path: Path) -> None:
    write_html(report, tmp_path / "index.html")
    assert (tmp_path / "index.html").stat().st_size < 3_000_000
    page = Page((tmp_path / "index.html").read_text())
    assert page.open == []
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "embed", "form", "a"})
    references = [value for _, attrs in page.elements for name, value in attrs.items() if name in {"src", "href"}]
    assert references == ["data:,"]


def test_the_policy_allows_the_page_its_own_style_alone(report: Report) -> None:
    text = format_html(report)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(attrs["content"] for _, attrs in Page(text).elements if "http-equiv" in attrs)
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not [1 for _, attrs in Page(text).elements for name in attrs if name == "style" or name.startswith("on")]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_stay_text(name: str) -> None:
    harmless = [(tag, sorted(attrs)) for tag, attrs in Page(format_html(hostile_report("name"))).elements]
    page = format_html(hostile_report(name))
    assert [(tag, sorted(attrs)) for tag, attrs in Page(page).elements] == harmless
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)
    page.encode()


def test_the_answer_and_every_number_of_the_tables_are_on_the_page() -> None:
    text = Page(format_html(small_report())).text
    assert "9.35 ms median of 50 clean steps on rank 1, the slowest of 2" in text
    assert "95% interval 9.270 to 9.420 ms" in text
    assert all(finding.claim in text for finding in small_report().findings)
    report = full_report(full_analysis(offset_ns=7_000))
    text = Page(format_html(report)).text
    for _, make_table, _ in TABLES:
        assert make_table(report).rows
        assert all(cell in text for row in make_table(report).rows for cell in row)
    assert all(cell in text for row in without_table(report).rows for cell in row)


PARTS = {
    Section.STEP_TIME: {"steps"},
    Section.PARTITION: {"partition"},
    Section.OVERLAP: {"overlap", "stages"},
    Section.STRAGGLERS: {"stragglers"},
    Section.IDLE: {"idle"},
    Section.LAUNCHES: {"launches"},
    Section.KERNELS: {"kernels"},
    Section.CERTAINTY: {"budget"},
}


@pytest.mark.parametrize("section", list(Section))
def test_the_page_shows_what_was_asked_for_alone(section: Section) -> None:
    page = Page(format_html(replace(full_report(), sections=frozenset({section}))))
    headings = {attrs.get("id") for tag, attrs in page.elements if tag == "h2"}
    assert headings == {"answer", "notes", "environment"} | PARTS[section]
    assert ("9.35 ms" in page.text) == (section is Section.STEP_TIME)


def test_the_matrix_of_waits_is_as_dark_as_the_waits_are_long() -> None:
    cells = [str(attrs.get("class")) for tag, attrs in Page(format_html(full_report())).elements if tag == "td"]
    heats = [name.split()[1] for name in cells if "heat-" in name]
    assert heats == ["heat-0", "heat-1", "heat-8", "heat-0"]


def test_every_mark_of_a_chart_has_a_colour() -> None:
    """Of every cause and of every kind of collective that a chart may show."""
    page = format_html(reports()["large"])
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    marks = {
        str(attrs["class"])
        for tag, attrs in Page(page).elements
        if tag in {"rect", "path"} and attrs.get("class") and "share" not in str(attrs["class"])
    }
    assert {cause.value for cause in GapCause} | {"wait", "transfer", "unsplit", "series-1"} <= marks
    assert all(re.search(rf"\.{re.escape(name)}[ ,{{]", style) for name in marks)


def test_points_lie_where_their_logarithms_say() -> None:
    many = [replace(BANDWIDTHS[0], num_bytes=10**k, median_ns=50_000) for k in (3, 5, 7)]
    chart = draw_bandwidths(many)
    assert chart is not None
    (shape,) = chart.shapes
    places = [(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)m", shape.path)]
    (x0, y0), (x1, y1), (x2, y2) = places
    # A hundredfold size at the same time is a hundredfold speed: equal distances, to the right and up.
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x1 > x0
    assert y1 < y0
    assert [tick.label for tick in chart.x_ticks] == ["1 kB", "10 kB", "100 kB", "1 MB", "10 MB"]
    assert draw_bandwidths(BANDWIDTHS) is None  # one point alone shows nothing
    assert [shape.name for shape in chart.legend] == ["series-1"]


def test_parts_of_bars_tell_what_exposed_time_is() -> None:
    chart = draw_exposed(full_report())
    assert chart is not None
    first, second = chart.bars
    assert [round(part.width / (1024 - 84 - 64) * 1.75, 2) for part in first.parts] == [0.15, 0.7, 0.05]
    assert [part.label for part in second.parts] == ["57.1%", "40.0%", ""]
    assert second.total == "1.750 ms"
    idle = draw_idle(full_report())
    assert idle is not None
    assert idle.legend == (("late_launch", "late launch"), ("sync", "sync"))
    assert draw_idle(empty_report()) is None


def test_a_long_name_is_shortened_and_its_numbers_stay() -> None:
    name = "a_kernel_of_many_templates<" * 80
    measured = analysis(two_ranks(name))
    text = Page(format_html(replace(empty_report(), analysis=measured, findings=find_all(measured)))).text
    assert name[:200] not in text
    assert "runs with no compute beside it for 375 us per step (3.8% of it), most on rank 1: 450 us" in text


def test_steps_that_alternate_show_their_mean_and_both_levels() -> None:
    log = alternating_log()
    text = Page(format_html(replace(empty_report(), step_log=log, analysis=analysis((), log)))).text
    assert "150 ms on average: 100 ms and 200 ms in turn mean of whole pairs of 20 clean steps on rank 0" in text
    assert "mean 150.000 ms: 100.000 and 200.000 ms in turn" in text


def test_a_damaged_trace_is_said_first() -> None:
    text = Page(format_html(damaged_report())).text
    assert text.index("The trace of rank 1 is damaged") < text.index("How long is a step")


def test_missing_data_is_said(report: Report) -> None:
    text = Page(format_html(report)).text
    assert ("There is no step log" in text) == (report.step_log is None or report.step_log.steps.is_empty())
    assert ("There is no trace" in text) == (not report.analysis.ranks)


def test_a_failed_run_says_so_first() -> None:
    text = Page(format_html(reports()["failed"])).text
    assert text.index("This run failed: rank 1 died") < text.index("How long is a step")


def test_every_chart_is_named_can_be_reached_and_has_a_table() -> None:
    page = Page(format_html(full_report()))
    charts = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("role") == "img"]
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    # Two of step times, one of mean steps and two of traced steps; of exposed communication and of idle time.
    assert len(charts) == 7
    assert all(chart["tabindex"] == "0" for chart in charts)
    assert all(word in ids for chart in charts for word in str(chart["aria-labelledby"]).split())
    assert len(ids) == len(set(ids))


def test_each_step_is_drawn_once_where_its_time_says() -> None:
    log = step_log(step_rows(0, "warmup", 0, [10**9]) + step_rows(0, "clean", 1, [10_000_000, 10_000_000, 20_000_000]))
    (chart,) = draw_step_times(log, ())
    paths = {shape.name: shape.path for shape in chart.shapes}
    assert paths["profiled"] == paths["transition"] == ""
    points = re.findall(r"M([\d.]+) ([\d.]+)m", paths["clean"])
    assert len(points) == 3
    assert points[0][1] == points[1][1] > points[2][1]
    # The warm-up step is far above the axis, so it sits on its upper edge.
    assert re.findall(r"M[\d.]+ ([\d.]+)m", paths["warmup"]) == ["14"]
    assert chart.remark == "1 step above the axis, drawn at its edge: up to 1000.000 ms."


def test_bars_are_as_long_as_their_share() -> None:
    chart = draw_mean_steps(small_report())
    assert chart is not None
    whole = 1024 - 84 - 64
    widths = {part.name: part.width for part in chart.bars[0].parts}
    assert widths == {
        "compute": pytest.approx(0.81 * whole, abs=0.01),
        "communication": pytest.approx(0.09 * whole, abs=0.01),
        "copy": pytest.approx(0.01 * whole, abs=0.01),
        "idle": pytest.approx(0.09 * whole, abs=0.01),
    }


def test_columns_stack_to_the_length_of_their_step() -> None:
    chart = draw_steps(rank_analysis(0, [partition(4_000, 3_000, 2_000, 1_000)]), longest_ns=10_000_000, height=190)
    assert chart is not None
    heights = [float(found[1]) for shape in chart.shapes if (found := re.search(r"v([\d.]+)h", shape.path))]
    assert heights == pytest.approx([0.4 * 152, 0.3 * 152, 0.2 * 152, 0.1 * 152], abs=0.06)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 10, ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        (0, 1, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (95, 103, ["96", "98", "100", "102"]),
        (0, 20_000, ["0", "5000", "10000", "15000", "20000"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [tick.label for tick in Axis(low=low, high=high, start=0, end=100).ticks(4)] == labels
