"""The statistics of repeated runs are those that the published records print of theirs."""

from __future__ import annotations

import builtins
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainer import repeat
from trainer.__main__ import main
from trainer.repeat import Evidence, Run, describe, judge
from trainer.run_statistics import p_of_equal_means, p_of_mean_below, summarise

# Record of 140.7 s, 2025-10-04: its own losses and times, and the one before it, retimed.
LOSSES_140 = [3.2772, 3.2796, 3.2781, 3.2783, 3.2769]
TIMES_140 = [140.626, 140.678, 140.693, 140.718, 140.769]
RETIMED_146 = [147.189, 146.906, 146.690]


def _runs(losses: list[float], times: list[float]) -> list[Run]:
    return [
        Run(seed=seed, validation_loss=loss, train_s=time_s, first_step_s=1.0)
        for seed, (loss, time_s) in enumerate(zip(losses, times, strict=True))
    ]


EVIDENCE = Evidence(
    target_loss=3.28,
    runs=_runs(LOSSES_140, TIMES_140),
    baseline="before",
    baseline_runs=_runs([3.28] * 3, RETIMED_146),
)


def test_the_record_of_140_7_s() -> None:
    """Printed there: p=0.0070; losses tensor(0.0011), tensor(3.2780); time tensor(0.0525), tensor(140.6968)."""
    p = p_of_mean_below(LOSSES_140, 3.28)
    assert p is not None
    assert f"{p:.4f}" == "0.0070"
    losses, times = summarise(LOSSES_140), summarise(TIMES_140)
    assert (f"{losses.deviation:.4f}", f"{losses.mean:.4f}") == ("0.0011", "3.2780")
    assert (f"{times.deviation:.4f}", f"{times.mean:.4f}") == ("0.0525", "140.6968")


@pytest.mark.parametrize(
    ("times", "mean"),
    [
        ([150.393, 150.347, 150.413], "150.3843"),  # printed in the record of 149.6 s
        ([149.686, 149.678, 149.775, 149.623], "149.6905"),
        (RETIMED_146, "146.9283"),  # printed as 146.9
        ([137.083, 137.374, 137.546], "137.3343"),  # printed as 137.3, in the record of 134.9 s
    ],
)
def test_means_of_the_other_tables(times: list[float], mean: str) -> None:
    assert f"{summarise(times).mean:.4f}" == mean


def test_our_tests_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for target in (3.27, 3.2779, 3.28, 3.3):
        expected = stats.ttest_1samp(LOSSES_140, target, alternative="less").pvalue
        assert p_of_mean_below(LOSSES_140, target) == pytest.approx(expected, rel=1e-9)
    expected = stats.ttest_ind(TIMES_140, RETIMED_146, equal_var=False).pvalue
    assert p_of_equal_means(TIMES_140, RETIMED_146) == pytest.approx(expected, rel=1e-9)


def test_where_nothing_can_be_said() -> None:
    assert p_of_mean_below([3.2], 3.28) is None
    assert p_of_mean_below([3.28, 3.28], 3.28) is None
    assert p_of_mean_below([3.2, 3.2], 3.28) == 0
    assert p_of_mean_below([3.3, 3.3], 3.28) == 1
    assert p_of_equal_means([1.0], [1.0, 2.0]) is None
    assert p_of_equal_means([1.0, 1.0], [2.0, 2.0]) is None
    assert summarise([2.0]).deviation is None
    with pytest.raises(ValueError, match="empty sample"):
        summarise([])


def test_the_report_says_it_all() -> None:
    text = "\n".join(describe(EVIDENCE, judge(EVIDENCE)))
    assert "losses  mean 3.2780, deviation 0.0011, 5 runs" in text
    assert "target  3.28: met, p = 0.0070" in text
    assert "times   mean 140.6968 s, deviation 0.0525 s, 5 runs" in text
    assert "retimed  147.189, 146.906, 146.690 s" in text
    assert "6.232 s faster than it (4.24%), p = 0.00" in text


def test_a_target_that_is_not_met_says_so() -> None:
    evidence = Evidence(target_loss=3.2781, runs=EVIDENCE.runs, baseline=None, baseline_runs=[])
    document = judge(evidence)
    assert not document["is_met"]
    assert "target  3.2781: not shown, p = 0.4" in "\n".join(describe(evidence, document))


def test_without_scipy_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return before(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    document = judge(EVIDENCE)
    assert document["p"] is None
    assert not document["is_met"]
    assert "target  3.28: scipy is not installed, so no test was made" in "\n".join(describe(EVIDENCE, document))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that `repeat` would run; each leaves the next loss and time of the record."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        number = int(command[command.index("--seed") + 1]) - 3
        is_baseline = "record_134" in command
        result = {"seed": number + 3, "validation_loss": LOSSES_140[number], "first_step_s": 0.5}
        result["train_s"] = (RETIMED_146 if is_baseline else TIMES_140)[number]
        Path(command[command.index("--result") + 1]).write_text(json.dumps(result))
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(repeat.subprocess, "run", run)
    return commands


def test_runs_and_a_baseline_take_turns(asked: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["repeat", "--target-loss", "3.28", "--first-seed", "3", "--baseline", "record_134", "--json"]
    words += ["--nproc-per-node", "8"]
    assert main([*words, "--", "--steps", "7"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert f"{document['p']:.4f}" == "0.0070"
    assert document["baseline"]["times_s"]["values"] == RETIMED_146
    assert ["record_134" in command for command in asked] == [False, True, False, True, False, True, False, False]
    assert all("--nproc-per-node 8 -m trainer train --steps 7" in " ".join(command) for command in asked)
    assert [command[command.index("--seed") + 1] for command in asked] == list("33445567")


def test_a_file_of_an_earlier_repeat_is_a_baseline(
    asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["repeat", "--runs", "3", "--target-loss", "3.2784", "--first-seed", "3"]
    assert main([*words, "--json"]) == 1  # p of three runs: 0.46
    (tmp_path / "before.json").write_text(capsys.readouterr().out)
    asked.clear()
    assert main([*words, "--baseline", str(tmp_path / "before.json")]) == 1
    assert len(asked) == 3
    assert "0.000 s faster than it (0.00%), p = 1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["--runs", "0"], "0 must be 1 or more", 2),
        (["--baseline", "no-such"], "--baseline no-such: no such preset or file; use one of tiny_cpu", 2),
        (["--baseline", __file__], "holds no runs (JSONDecodeError", 4),
        (["--", "--seed", "3"], "--seed after --: every run has its own", 2),
        (["--", "--stepz", "3"], "unrecognized arguments: --stepz", 2),
        (["--", "--preset", "huge"], "no preset 'huge'", 2),
    ],
)
def test_wrong_words_are_one_line(
    asked: list[list[str]], words: list[str], says: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repeat", "--target-loss", "3.28", *words]) == code
    assert not asked
    error = capsys.readouterr().err
    assert error.startswith("trainer: error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_run_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = "[W1] noise\ntrainer: error: a.bin: is no token shard; give others\nChildFailedError\n"
    monkeypatch.setattr(
        repeat.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 4, "", error)
    )
    assert main(["repeat", "--target-loss", "3.28", "--json"]) == 4
    assert (
        capsys.readouterr().err == "trainer: error: the run of seed 0 failed: a.bin: is no token shard; give others\n"
    )
