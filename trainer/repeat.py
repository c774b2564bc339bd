"""`python -m trainer repeat`: several seeds in turn, and what their losses and times show beside a baseline's."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer import arguments as command_line
from trainer import config as configs
from trainer.errors import ENVIRONMENT, NOT_FINITE, TARGET_MISSED, UNREADABLE_INPUT, WRONG_USAGE, TrainerError
from trainer.loop import Training
from trainer.run_statistics import SIGNIFICANCE, p_of_equal_means, p_of_mean_below, summarise

_LEFT_OUT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
_NO_SCIPY = "scipy is not installed, so no test was made: pip install scipy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run left. train_s: seconds of its steps alone, between waits for the device: no validation, no
    checkpoints. first_step_s: host seconds of its first step, which compiles."""

    seed: int
    validation_loss: float
    train_s: float
    first_step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Runs of ours, and of a baseline if there is one, with what they show."""

    target_loss: float
    runs: list[Run]
    baseline: str | None
    baseline_runs: list[Run]

    @property
    def losses(self) -> list[float]:
        return [run.validation_loss for run in self.runs]

    @property
    def times_s(self) -> list[float]:
        return [run.train_s for run in self.runs]

    @property
    def baseline_times_s(self) -> list[float]:
        return [run.train_s for run in self.baseline_runs]


def write_result(training: Training, path: Path) -> None:
    """Leave what `Run` needs, on the rank that calls it. Raises TrainerError (environment) where it cannot write."""
    result = {
        "seed": training.config.seed,
        "validation_loss": training.validation_loss,
        "train_s": training.progress.train_s(),
        "first_step_s": training.progress.first_step_s,
        "num_steps": training.num_steps_done,
        "world_size": training.ranks.world_size,
        "preset": training.config.preset,
    }
    try:
        path.write_text(json.dumps(result) + "\n")
    except OSError as error:
        raise TrainerError(
            f"{path}: {error.strerror or error}; name a file that can be written with --result", ENVIRONMENT
        ) from error


def run(arguments: argparse.Namespace) -> int:
    """Run all, print what they show; the exit code. Raises TrainerError for wrong words or a run that fails."""
    _check(arguments)
    file = _baseline_file(arguments.baseline)
    baseline_runs = read_runs(file) if file is not None else []
    runs: list[Run] = []
    for number in range(max(arguments.runs, 0 if arguments.baseline is None or file else arguments.baseline_runs)):
        seed = arguments.first_seed + number
        if number < arguments.runs:
            runs.append(_train(arguments, seed, []))
        if arguments.baseline is not None and file is None and number < arguments.baseline_runs:
            baseline_runs.append(_train(arguments, seed, ["--preset", arguments.baseline]))
    evidence = Evidence(
        target_loss=arguments.target_loss, runs=runs, baseline=arguments.baseline, baseline_runs=baseline_runs
    )
    document = judge(evidence)
    print(json.dumps(document, indent=2) if arguments.json else "\n".join(describe(evidence, document)), flush=True)
    if document["note"] is not None:
        return ENVIRONMENT
    return 0 if document["is_met"] else TARGET_MISSED


def _check(arguments: argparse.Namespace) -> None:
    for option in ("--seed", "--result", "--resume"):
        if any(word == option or word.startswith(f"{option}=") for word in arguments.train_arguments):
            raise TrainerError(f"{option} after --: every run has its own; leave it out", WRONG_USAGE)
    train = command_line.parse(["train", *arguments.train_arguments])
    if train.preset is not None:
        configs.preset(train.preset)


def _baseline_file(baseline: str | None) -> Path | None:
    """The file that --baseline names, or None for a preset. Raises TrainerError where it is neither."""
    if baseline is None or baseline in configs.PRESETS:
        return None
    if not Path(baseline).is_file():
        raise TrainerError(
            f"--baseline {baseline}: no such preset or file; use one of {', '.join(configs.PRESETS)}, or a file that "
            "`repeat --json` wrote",
            WRONG_USAGE,
        )
    return Path(baseline)


def read_runs(path: Path) -> list[Run]:
    """The runs of a document that `repeat --json` printed. Raises TrainerError (unreadable input)."""
    try:
        runs = [
            Run(**{name: kind(run[name]) for name, kind in _RUN_FIELDS.items()})
            for run in json.loads(path.read_text())["runs"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainerError(
            f"{path}: holds no runs ({type(error).__name__}: {error}); give a file that `repeat --json` wrote",
            UNREADABLE_INPUT,
        ) from error
    if not runs:
        raise TrainerError(f"{path}: holds no runs; give a file that `repeat --json` wrote", UNREADABLE_INPUT)
    return runs


_RUN_FIELDS: dict[str, Callable[[Any], Any]] = {
    "seed": int,
    "validation_loss": float,
    "train_s": float,
    "first_step_s": float,
}


def _train(arguments: argparse.Namespace, seed: int, more: Sequence[str]) -> Run:
    """One run in processes of its own; its log goes to stderr, and to nowhere with --json."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = [*arguments.train_arguments, *more, "--seed", str(seed), "--result", str(result)]
        if not arguments.json:
            print(f"repeat: seed {seed}{' of the baseline' if more else ''}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [*_launcher(arguments.nproc_per_node), "train", *words],
            stdout=subprocess.DEVNULL if arguments.json else sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name not in _LEFT_OUT},
            check=False,
        )
        if done.returncode or not result.exists():
            raise _failure(seed, done)
        document = json.loads(result.read_text())
    loss = document["validation_loss"]
    if loss is None:
        raise TrainerError("the runs have no validation loss to test; name shards with --val-data", WRONG_USAGE)
    if not math.isfinite(loss):
        raise TrainerError(
            f"the run of seed {seed} ended with a validation loss of {loss}; lower its rates", NOT_FINITE
        )
    return Run(**{name: kind(document[name]) for name, kind in _RUN_FIELDS.items()})


def _launcher(num_ranks: int) -> list[str]:
    module = [sys.executable, "-m"]
    if num_ranks == 1:
        return [*module, "trainer"]
    return [*module, "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m", "trainer"]


def _failure(seed: int, done: subprocess.CompletedProcess[str]) -> TrainerError:
    """The run's own line, of the rank that said one; else the last line."""
    lines = done.stderr.strip().splitlines() or ["it said nothing"]
    own = [line.partition("trainer: error: ")[2] for line in lines if "trainer: error: " in line]
    if not own:
        sys.stderr.write(done.stderr)
    code = done.returncode if done.returncode > 0 else ENVIRONMENT
    return TrainerError(f"the run of seed {seed} failed: {own[0] if own else lines[-1]}", code)


def judge(evidence: Evidence) -> dict[str, Any]:
    """The evidence and its statistics, as JSON values. is_met: shown; note: why no test was made."""
    document: dict[str, Any] = {
        "target_loss": evidence.target_loss,
        "runs": [asdict(run) for run in evidence.runs],
        "losses": asdict(summarise(evidence.losses)),
        "times_s": asdict(summarise(evidence.times_s)),
        "p": None,
        "is_met": False,
        "note": None,
        "baseline": None,
    }
    if evidence.baseline_runs:
        document["baseline"] = {
            "name": evidence.baseline,
            "runs": [asdict(run) for run in evidence.baseline_runs],
            "times_s": asdict(summarise(evidence.baseline_times_s)),
            "p_of_equal_times": None,
        }
    try:
        document["p"] = p_of_mean_below(evidence.losses, evidence.target_loss)
        if evidence.baseline_runs:
            document["baseline"]["p_of_equal_times"] = p_of_equal_means(evidence.times_s, evidence.baseline_times_s)
    except ImportError:
        document["note"] = _NO_SCIPY
    document["is_met"] = document["p"] is not None and document["p"] < SIGNIFICANCE
    return document


def describe(evidence: Evidence, document: dict[str, Any]) -> Iterator[str]:
    """The lines for a reader."""
    yield f"{'seed':>5}  {'validation loss':>15}  {'train time':>12}  {'first step':>12}"
    for run in evidence.runs:
        yield f"{run.seed:>5}  {run.validation_loss:>15.4f}  {run.train_s:>10.3f} s  {run.first_step_s:>10.3f} s"
    yield f"losses  {_spell(document['losses'], '.4f')}"
    yield f"target  {evidence.target_loss:g}: {_verdict(document)}"
    yield f"times   {_spell(document['times_s'], '.4f', ' s')}"
    if document["baseline"] is not None:
        yield from _describe_baseline(evidence, document["baseline"], document["times_s"]["mean"])


def _spell(summary: dict[str, Any], digits: str, unit: str = "") -> str:
    deviation = "none" if summary["deviation"] is None else f"{summary['deviation']:{digits}}{unit}"
    return f"mean {summary['mean']:{digits}}{unit}, deviation {deviation}, {len(summary['values'])} runs"


def _verdict(document: dict[str, Any]) -> str:
    if document["note"] is not None:
        return str(document["note"])
    if document["p"] is None:
        return "not shown: the test needs two runs or more that differ"
    verdict = "met" if document["is_met"] else "not shown"
    return f"{verdict}, p = {document['p']:.4f} that the true mean is no lower (needed: under {SIGNIFICANCE:g})"


def _describe_baseline(evidence: Evidence, baseline: dict[str, Any], mean_s: float) -> Iterator[str]:
    yield f"baseline {baseline['name']}  {_spell(baseline['times_s'], '.4f', ' s')}"
    yield f"  retimed  {', '.join(f'{time_s:.3f}' for time_s in evidence.baseline_times_s)} s"
    gained_s = baseline["times_s"]["mean"] - mean_s
    p = baseline["p_of_equal_times"]
    certainty = "" if p is None else f", p = {p:.4f} that the true times are equal"
    word = "faster" if gained_s >= 0 else "slower"
    yield f"  {abs(gained_s):.3f} s {word} than it ({abs(gained_s) / baseline['times_s']['mean']:.2%}){certainty}"
