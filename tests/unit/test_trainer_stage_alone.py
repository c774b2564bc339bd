"""One stage alone is the optimizer's own, timed with what belongs to it, and named as the plan names it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from speedprof import annotate
from speedprof.annotate import Stage
from trainer import stage_alone
from trainer.__main__ import main
from trainer.adam import ADAM_STAGES
from trainer.muon import MUON_STAGES
from trainer.ranks import Ranks
from trainer.sharding import ParameterShape, adam_plan, muon_plan
from trainer.stage_alone import Repetition, StageTimes, find_group, time_stage

SMALL = ("dim=16", "micro_batch_tokens=48", "max_document_tokens=48", "compile=off", "attention=reference")
ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
PLANS = (
    *muon_plan([ParameterShape(label="smear_gate", shape=(1, 12)), ParameterShape(label="mlp", shape=(8, 32))], 2),
    *adam_plan([ParameterShape(label="embed", shape=(48, 6)), ParameterShape(label="lm_head", shape=(48, 6))], 2),
)


@pytest.fixture(autouse=True)
def _one_group_at_a_time() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    annotate.listen(None)
    torch.set_num_threads(threads)
    if dist.is_initialized():
        dist.destroy_process_group()


def _main(*words: str) -> int:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    return main(["stage", "--preset", "tiny_cpu", *settings, *words])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("muon.mlp", "muon.mlp"),
        ("muon.1", "muon.smear_gate"),
        ("muon.2", "muon.mlp"),
        ("adam.1", "adam.lm_head"),
        ("adam.embed", "adam.embed"),
    ],
)
def test_groups_have_the_plans_names_and_numbers(name: str, found: str) -> None:
    assert find_group(name, PLANS).name == found


@pytest.mark.parametrize("stage", MUON_STAGES)
def test_every_stage_of_muon_runs_alone(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--stage", stage, "--group", "muon.attn_gate", "--repeat", "7", "--warmup", "2", "--json"]
    assert _main(*words) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["stage"], document["group"], document["world_size"]) == (stage, "muon.attn_gate", 1)
    assert [len(times) for times in document["times_ns"]] == [7]
    assert document["bytes"] == 10 * 2 * 12 * 4  # attention layers x heads x channels x fp32
    assert document["bus_bytes"] == 0  # alone
    assert document["bus_bytes_per_s"] is None
    times = sorted(document["times_ns"][0])
    assert document["median_ns"] == times[3]
    assert (document["quantiles_ns"]["0"], document["quantiles_ns"]["1"]) == (times[0], times[-1])
    assert all(isinstance(time_ns, int) and time_ns > 0 for time_ns in times)


def test_a_stage_of_adam_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("--stage", "update", "--group", "adam.scalars", "--repeat", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "update of adam.scalars, 1 ranks, cpu, 3 times"
    assert lines[1].startswith("median ")
    assert lines[2].startswith("quantiles in ns  0: ")


@pytest.mark.parametrize(
    ("stage", "group", "says"),
    [
        ("reduce", "muon.mlp", "--stage reduce: muon.mlp has no such stage; use one of reduce_scatter, "),
        ("newton_schulz", "adam.1", "--stage newton_schulz: adam.lm_head has no such stage; use one of reduce_"),
        ("update", "muon.9", "--group muon.9: no such group; use one of muon.smear_gate (muon.1), "),
    ],
)
def test_unknown_names_are_answered_with_the_choices(
    stage: str, group: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main("--stage", stage, "--group", group) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"trainer: error: {says}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("stage", "before", "timed"),
    [
        (Stage.REDUCE_SCATTER, (), (Stage.REDUCE_SCATTER, Stage.REDUCE_SCATTER_WAIT)),
        (Stage.REDUCE_SCATTER_WAIT, (Stage.REDUCE_SCATTER,), (Stage.REDUCE_SCATTER_WAIT,)),
        (Stage.NEWTON_SCHULZ, (), (Stage.NEWTON_SCHULZ,)),
        (Stage.UPDATE, (Stage.NEWTON_SCHULZ,), (Stage.UPDATE,)),
        (Stage.ALL_GATHER, (), (Stage.ALL_GATHER, Stage.ALL_GATHER_WAIT)),
        (Stage.ALL_GATHER_WAIT, (Stage.ALL_GATHER,), (Stage.ALL_GATHER_WAIT,)),
        (Stage.COPY_BACK, (), (Stage.COPY_BACK,)),
    ],
)
def test_only_what_belongs_to_the_stage_is_timed(
    stage: Stage, before: tuple[Stage, ...], timed: tuple[Stage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake clock gives each stage a duration of its own: the first 1 ns, the second 10, and so on."""
    repetition = Repetition.of(stage, MUON_STAGES)
    assert (repetition.before, repetition.timed) == (before, timed)
    now_ns, called = 0, []

    def call(one: Stage) -> None:
        nonlocal now_ns
        called.append(one)
        now_ns += 10 ** MUON_STAGES.index(one)

    monkeypatch.setattr(stage_alone.time, "perf_counter_ns", lambda: now_ns)
    times = time_stage(call, repetition, ALONE, num_repetitions=3, num_warmup=2)
    assert times == [sum(10 ** MUON_STAGES.index(one) for one in timed)] * 3
    assert called == [Stage.REDUCE_SCATTER, Stage.REDUCE_SCATTER_WAIT, *[*before, *timed] * 5]


def test_an_update_of_adam_needs_nothing_before_it() -> None:
    assert Repetition.of(Stage.UPDATE, ADAM_STAGES) == Repetition(timed=(Stage.UPDATE,))


def test_the_slowest_rank_and_the_bus_count() -> None:
    times = StageTimes(
        stage="reduce_scatter",
        group="muon.mlp",
        world_size=4,
        device="cpu",
        bytes=4_000_000,
        bus_bytes=3_000_000,
        times_ns=[[1000, 5000, 2000], [3000, 1000, 1000], [1, 1, 1], [1, 1, 1]],
    )
    assert times.slowest_ns == [3000, 5000, 2000]
    assert times.median_ns == 3000
    assert times.bus_bytes_per_s == 1e12
    assert times.to_json()["median_ns_per_rank"] == [2000, 1000, 1, 1]
    assert "3,000,000 bytes on the bus, 1000.00 GB/s" in times.describe()
