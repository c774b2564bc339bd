"""`speedprof capture`."""

from __future__ import annotations

import glob
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speedprof.errors import ExitCode, SpeedprofError, UnreadableError, UsageError
from speedprof.run_dir import RunStatus

if TYPE_CHECKING:
    from speedprof.capture.launch import Launch
    from speedprof.capture.outcome import Outcome
    from speedprof.run_dir import RunDir

_TRAINER = "trainer"
_REPORT_LATER = "make it with `python -m speedprof report {}`, on this machine or on another"


def capture(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]", help="Passed on to the program as they are.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps to clock without the profiler.")] = 50,
    preset: Annotated[
        str | None, typer.Option(help="The trainer's preset.", show_default="tiny_cpu, or record_134 on GPUs")
    ] = None,
    nproc: Annotated[int | None, typer.Option(help="Ranks.", show_default="one a GPU, or 2 on a CPU machine")] = None,
    data: Annotated[str | None, typer.Option(help="The trainer's token shards, as a glob.")] = None,
    warmup: Annotated[int, typer.Option(help="Steps before the first that counts; compilation falls here.")] = 10,
    trace_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps to trace after the clean ones; 0 for none.", show_default="as many as fit, up to --steps"
        ),
    ] = None,
    max_trace_mb: Annotated[int, typer.Option(help="The most JSON a rank's trace may take, in MB.")] = 256,
    shapes: Annotated[bool, typer.Option(help="Record the shapes of operators' inputs.")] = True,
    memory: Annotated[bool, typer.Option("--memory", help="Record allocations.")] = False,
    stacks: Annotated[bool, typer.Option("--stacks", help="Record Python stacks; slow.")] = False,
    program: Annotated[str, typer.Option(help="What to run: a module, or a script that ends in .py.")] = _TRAINER,
    run_id: Annotated[
        str | None, typer.Option(help="The run's name.", show_default="time, commit, preset, ranks")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where traces/ and reports/ lie.")] = Path(),
) -> None:
    """Run the trainer on every GPU, or on 2 CPU ranks; clock its steps, trace some, and report.

    After the warm-up, STEPS steps are clocked without the profiler. Then as many are traced as --max-trace-mb holds.
    Everything lands in traces/<run-id>/, the reports in reports/<run-id>/. A timeline for Perfetto takes longer to
    write, and is left to `report --format perfetto`.

    Examples:
      python -m speedprof capture --steps 50
      python -m speedprof capture --steps 20 --nproc 4 -- --set muon_learning_rate=0.02
    """
    from speedprof.capture.launch import Launch, choose_num_ranks, device_name
    from speedprof.capture.plan import CapturePlan

    plan = CapturePlan(
        steps=steps,
        warmup=warmup,
        trace_steps=trace_steps,
        max_trace_bytes=max_trace_mb * 1_000_000,
        shapes=shapes,
        memory=memory,
        stacks=stacks,
    )
    if data is not None and not glob.glob(data):
        raise UnreadableError(
            f"{data}: no file matches", next_step="give --data a path or a quoted glob of .bin shards"
        )
    if program == _TRAINER:
        _require_own_trainer()
    num_ranks, device = choose_num_ranks(nproc), device_name()
    chosen = preset or ("tiny_cpu" if device == "cpu" else "record_134")
    launch = Launch(
        plan=plan,
        program=program,
        arguments=(*_trainer_arguments(program, preset=chosen, data=data), *(arguments or ())),
        num_ranks=num_ranks,
        name=chosen if program == _TRAINER else Path(program).stem,
        device=device,
    )
    raise typer.Exit(_run(launch, out, run_id=run_id))


def _run(launch: Launch, out: Path, *, run_id: str | None) -> int:
    """Capture, close the run, tell how it ended and what it shows. Returns the exit code."""
    from speedprof.capture.launch import create_run, interrupts, run
    from speedprof.cli.progress import CaptureProgress
    from speedprof.run_dir import close_manifest

    run_dir, manifest = create_run(launch, out / "traces", run_id=run_id, command=["speedprof", *sys.argv[1:]])
    with interrupts() as received:
        with CaptureProgress(launch, run_dir) as progress:
            outcome = run(launch, run_dir, progress, received)
        if outcome.error is not None and not progress.has_printed(outcome.error):
            print(f"\n{outcome.error}\n", file=sys.stderr)
        missing = _write_scalars(run_dir)
        close_manifest(run_dir, manifest, status=outcome.status, failure=outcome.failure)
    _tell(outcome, run_dir)
    try:
        if received and outcome.status is not RunStatus.INTERRUPTED:
            raise KeyboardInterrupt  # it came when the run was over, so only the report is left to drop
        _report(run_dir, out, missing)
    except KeyboardInterrupt:
        print(f"speedprof: the report was interrupted; {_REPORT_LATER.format(run_dir.path)}", file=sys.stderr)
        return 128 + received[0] if received else ExitCode.INTERRUPTED
    return outcome.exit_code


def _trainer_arguments(program: str, *, preset: str, data: str | None) -> list[str]:
    """Only the trainer knows of presets and shards; another program is given what follows `--` alone."""
    if program != _TRAINER:
        return []
    return ["--preset", preset, *(["--data", data] if data else [])]


def _require_own_trainer() -> None:
    """Raises UsageError where another `trainer` lies in the current folder: it would run instead of ours."""
    spec = importlib.util.find_spec("trainer")
    ours = Path(__file__).resolve().parents[2] / "trainer"
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != ours:
        raise UsageError(
            f"{spec.origin if spec else 'trainer'}: is not the trainer that comes with speedprof",
            next_step="run from another folder, or name your program with --program",
        )


def _tell(outcome: Outcome, run_dir: RunDir) -> None:
    """On stderr, in one line: nothing for a whole run, else what happened and what was kept."""
    if outcome.failure is not None:
        print(f"speedprof: error: {outcome.failure}; what it left is kept in {run_dir.path}", file=sys.stderr)
    elif outcome.status is RunStatus.INTERRUPTED:
        print(f"speedprof: interrupted; what there is so far is kept in {run_dir.path}", file=sys.stderr)
    elif outcome.status is RunStatus.PARTIAL:
        print(
            "speedprof: the program ended, or never marked a step, before the plan was fulfilled; "
            "ask it for more steps, or --steps for fewer",
            file=sys.stderr,
        )


def _write_scalars(run_dir: RunDir) -> str | None:
    """Write TensorBoard's scalars into the run; returns what is missing for it and for the report, if anything."""
    try:
        from speedprof.report.tensorboard import write_scalars
        from speedprof.step_log import read_step_log
    except ImportError as error:
        return error.name
    try:
        step_log = read_step_log(run_dir.steps_paths())
        if len(step_log.steps):
            write_scalars(step_log, run_dir.path)
    except (OSError, SpeedprofError) as error:
        print(f"speedprof: TensorBoard's scalars could not be written: {error}", file=sys.stderr)
    return None


def _report(run_dir: RunDir, out: Path, missing: str | None) -> None:
    """Print and write the report, unless a package that it needs is missing or no step was clocked."""
    if missing is not None:
        print(f"speedprof: {missing} is not installed here; {_REPORT_LATER.format(run_dir.path)}", file=sys.stderr)
        return
    from rich.console import Console

    from speedprof.cli.outputs import QUICK_FORMATS, terminal_width, write_reports
    from speedprof.cli.sources import report_on_run
    from speedprof.report.console import print_report

    report = report_on_run(run_dir)
    if not report.analysis.ranks and not report.analysis.step_times:
        return
    paths = write_reports(report, out / "reports" / run_dir.path.name, QUICK_FORMATS)
    print_report(report, Console(width=terminal_width()))
    print(f"\nrun      {run_dir.path}\nreport   {paths[0]}\nviews    tensorboard --logdir {run_dir.path.parent}")
