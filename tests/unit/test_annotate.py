"""Annotations push and pop their names in order, reach the listener, and vanish where nobody listens or traces."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from speedprof import annotate
from speedprof.annotate import Stage


class Recorder:
    """Stands in for nvtx and for a capture: keeps every call, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def push(self, name: str) -> None:
        self.calls.append(("push", name))

    def pop(self) -> None:
        self.calls.append(("pop",))

    def __getattr__(self, heard: str) -> Any:
        return lambda *values: self.calls.append((heard, *values))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """nvtx and the listener, recording into one list."""
    recorder = Recorder()
    monkeypatch.setattr(annotate, "_nvtx", (recorder.push, recorder.pop))
    annotate.listen(recorder)  # type: ignore[arg-type]
    yield recorder
    annotate.listen(None)


def test_a_step_is_heard_around_its_range(recorder: Recorder) -> None:
    with annotate.step(7):
        recorder.calls.append(("work",))
    assert recorder.calls == [
        ("step_began", 7, "train"),
        ("push", "speedprof.step/7"),
        ("work",),
        ("pop",),
        ("step_ended", 7),
    ]


def test_a_validation_step_says_so(recorder: Recorder) -> None:
    with annotate.step(2, kind="validation"):
        pass
    assert recorder.calls[:2] == [("step_began", 2, "validation"), ("push", "speedprof.step/2/validation")]


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_pushes_and_pops_its_name_with_its_group(recorder: Recorder, stage: Stage) -> None:
    with annotate.stage(stage.value, "muon.attn"):
        recorder.calls.append(("work",))
    assert recorder.calls == [
        ("stage_began", stage, "muon.attn"),
        ("push", f"speedprof.stage/{stage.value}/muon.attn"),
        ("work",),
        ("pop",),
        ("stage_ended", stage, "muon.attn"),
    ]


def test_ranges_nest_and_the_listener_does_not_hear_them(recorder: Recorder) -> None:
    with annotate.range("outer"), annotate.range("inner"):
        pass
    assert recorder.calls == [
        ("push", "speedprof.range/outer"),
        ("push", "speedprof.range/inner"),
        ("pop",),
        ("pop",),
    ]


def test_an_exception_leaves_every_range_popped_and_ended(recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="nan"), annotate.step(0), annotate.stage("update", "adam.head"):
        raise ValueError("nan")
    assert recorder.calls[-4:] == [("pop",), ("stage_ended", "update", "adam.head"), ("pop",), ("step_ended", 0)]


def test_a_listener_that_stops_the_program_at_a_mark_leaves_no_range_open(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(step: int, kind: str) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(recorder, "step_began", stop, raising=False)
    with pytest.raises(SystemExit), annotate.step(3):
        pass
    assert recorder.calls == []


def test_a_stage_that_is_none_is_refused_by_name(recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="reduce_scater"):
        annotate.stage("reduce_scater", "muon.attn")
    assert recorder.calls == []


def test_numbers_phases_and_facts_reach_the_listener_as_they_are(recorder: Recorder) -> None:
    loss = torch.tensor(2.5)
    annotate.metric("loss", loss)
    annotate.metric("lr", 0.02)
    annotate.phase("window 256")
    annotate.declare("preset", {"name": "tiny_cpu"})
    assert recorder.calls == [
        ("metric_seen", "loss", loss),
        ("metric_seen", "lr", 0.02),
        ("phase_began", "window 256"),
        ("declared", "preset", {"name": "tiny_cpu"}),
    ]


def test_nothing_fails_and_nothing_is_kept_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotate, "_nvtx", None)
    with annotate.step(0), annotate.stage("update", "adam.head"), annotate.range("mine"):
        annotate.metric("loss", torch.ones(1))
        annotate.phase("long")
    annotate.declare("preset", "none")


def test_a_listener_that_leaves_within_a_step_still_hears_its_end(recorder: Recorder) -> None:
    with annotate.step(0):
        annotate.listen(None)
        annotate.metric("loss", 1.0)
    assert recorder.calls[-1] == ("step_ended", 0)
    assert ("metric_seen", "loss", 1.0) not in recorder.calls


def test_inside_compiled_code_annotations_do_nothing_and_the_result_is_right(recorder: Recorder) -> None:
    def annotated(x: torch.Tensor) -> torch.Tensor:
        with annotate.step(0), annotate.stage("update", "adam.head"), annotate.range("mine"):
            y = x * 2
            annotate.metric("loss", 1.0)
            annotate.phase("long")
        return y + 1

    compiled = torch.compile(annotated, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.arange(4.0)), torch.arange(4.0) * 2 + 1)
    assert recorder.calls == []


def test_around_compiled_code_annotations_are_made(recorder: Recorder) -> None:
    compiled = torch.compile(lambda x: x + 1, fullgraph=True, backend="eager")
    with annotate.stage("update", "adam.head"):
        assert float(compiled(torch.zeros(()))) == 1.0
    assert recorder.calls[1] == ("push", "speedprof.stage/update/adam.head")


def test_a_profiler_sees_the_ranges_under_their_names(tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler, annotate.step(4):
        with annotate.stage("newton_schulz", "muon.mlp"):
            torch.ones(8).sum()
        with annotate.range("mine"):
            pass
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    names = [event["name"] for event in events if str(event.get("name", "")).startswith("speedprof.")]
    assert sorted(names) == ["speedprof.range/mine", "speedprof.stage/newton_schulz/muon.mlp", "speedprof.step/4"]


def test_the_package_nvtx_is_preferred_and_its_domain_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    class Domain:
        def get_event_attributes(self, *, message: str) -> tuple[str, str]:
            calls.append(("attributes", message))
            return ("attributes of", message)

        def push_range(self, attributes: tuple[str, str]) -> None:
            calls.append(("push", *attributes))

        def pop_range(self) -> None:
            calls.append(("pop",))

    class Nvtx:
        @staticmethod
        def get_domain(name: str) -> Domain:
            calls.append(("domain", name))
            return Domain()

    monkeypatch.setitem(sys.modules, "nvtx", Nvtx)
    monkeypatch.setattr(annotate, "_nvtx", annotate._open_nvtx())
    for _ in range(2):
        with annotate.range("mine"):
            pass
    pushed = ("push", "attributes of", "speedprof.range/mine")
    assert calls == [
        ("domain", "speedprof"),
        ("attributes", "speedprof.range/mine"),
        pushed,
        ("pop",),
        pushed,
        ("pop",),
    ]


def test_without_the_package_torch_itself_marks_ranges_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert annotate._open_nvtx() == (torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert annotate._open_nvtx() is None
