"""Ends this rank, in a line that says why, when another has died or hangs and the main thread may be stuck with it.

A thread looks twice a second at three things: whether another rank has left a notice (notices.py), whether this rank
waits too long in a collective, and whether SIGTERM has come, as torch.distributed.run sends when a rank fails. How long
a collective has been waited for says NCCL's flight recorder, since the host does not wait there, and on gloo the
stage that the host is in. The first steps of a process may wait longer: ranks compile, and not all equally fast.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch

from speedprof import annotate
from speedprof.annotate import Stage
from trainer import flight_recorder
from trainer.errors import COLLECTIVE_HUNG, RANK_LOST, TERMINATED, TrainerError
from trainer.finite import NotFinite, NotFiniteError
from trainer.notices import Notice, Notices, StoreGoneError
from trainer.position import HERE
from trainer.ranks import Ranks

COMPILING_TIMEOUT_S = 1800.0
NUM_COMPILING_STEPS = 2
"""Adam steps every second time, so its graphs are compiled in the second step."""

_POLL_S = 0.5
_STORE_GONE_S = 10.0
_GRACE_S = 2.0  # for what other ranks say, and for the main thread to end by itself
_COMMUNICATION = (Stage.REDUCE_SCATTER, Stage.REDUCE_SCATTER_WAIT, Stage.ALL_GATHER, Stage.ALL_GATHER_WAIT)
_LOST_CONNECTION = re.compile(r"gloo|nccl|connection|socket|peer|timed out|timeout|broken pipe", re.IGNORECASE)


class Terminated(SystemExit):
    """SIGTERM came."""


class _FollowingError(TrainerError):
    """This rank ends because another said that it does."""


class _PositionListener:
    """Keeps HERE up to date, and passes everything on to the listener that was there before."""

    def __init__(self, before: annotate.Listener | None) -> None:
        self.before = before
        self.num_steps = 0

    def step_began(self, step: int, kind: annotate.StepKind) -> None:
        self.num_steps += kind == "train"
        if self.before is not None:
            self.before.step_began(step, kind)

    def step_ended(self, step: int) -> None:
        if self.before is not None:
            self.before.step_ended(step)

    def stage_began(self, stage: str, group: str) -> None:
        HERE.enter(f"{stage} of {group}", is_collective=stage in _COMMUNICATION)
        if self.before is not None:
            self.before.stage_began(stage, group)

    def stage_ended(self, stage: str, group: str) -> None:
        HERE.leave()
        if self.before is not None:
            self.before.stage_ended(stage, group)

    def metric_seen(self, name: str, value: float | torch.Tensor) -> None:
        if self.before is not None:
            self.before.metric_seen(name, value)

    def phase_began(self, name: str) -> None:
        if self.before is not None:
            self.before.phase_began(name)

    def declared(self, name: str, value: Any) -> None:
        if self.before is not None:
            self.before.declared(name, value)


@contextmanager
def watching(ranks: Ranks, timeout_s: float) -> Iterator[None]:
    """Watch the run inside, for whose failures this raises TrainerError where another rank is the cause of them.

    timeout_s: how long a collective may be waited for, once NUM_COMPILING_STEPS steps are done.
    """
    watch = _Watch(ranks, timeout_s)
    watch.start()
    try:
        yield
    except Terminated:
        raise watch.on_failure(TrainerError(watch.describe_termination(), TERMINATED)) from None
    except NotFiniteError as error:
        raise watch.on_failure(watch.judge(error)) from None
    except RuntimeError as error:
        raise watch.on_failure(watch.explain(error)) from error
    except Exception as error:
        raise watch.on_failure(error) from None
    finally:
        watch.stop()


class _Watch:
    """The thread and what the main thread asks of it when a run fails."""

    def __init__(self, ranks: Ranks, timeout_s: float) -> None:
        self._ranks = ranks
        self._timeout_s = timeout_s
        self._notices = Notices(ranks)
        self._listener = _PositionListener(annotate.listener())
        self._thread = threading.Thread(target=self._run, name="trainer-watch", daemon=True)
        self._is_over = threading.Event()  # the main thread has taken over: it ends, well or not
        self._signals, self._signals_in = socket.socketpair()
        self._signals_in.setblocking(False)
        self._wakeup_before: int | None = None

    def start(self) -> None:
        annotate.listen(self._listener)
        is_main = threading.current_thread() is threading.main_thread()
        # A capture has a handler of its own, and ends its program by it.
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._receive)
            self._wakeup_before = signal.set_wakeup_fd(self._signals_in.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(timeout=_GRACE_S)
        if self._wakeup_before is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if annotate.listener() is self._listener:
            annotate.listen(self._listener.before)
        self._signals.close()
        self._signals_in.close()

    def on_failure(self, error: Exception) -> Exception:
        """Let the other ranks know of the error, and give them the time to read it. Returns it."""
        self._is_over.set()
        if self._ranks.world_size == 1:
            return error
        if isinstance(error, _FollowingError):
            if self._ranks.is_first:
                time.sleep(_GRACE_S)
            return error
        message = error.message if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, TrainerError) else 1
        with suppress(StoreGoneError):
            self._notices.post(Notice(rank=self._ranks.rank, exit_code=code, message=_first_line(message)))
            if self._ranks.is_first:  # this process may be the one that keeps the store
                time.sleep(_GRACE_S)
        return error

    def explain(self, error: RuntimeError) -> Exception:
        """An error of this rank is itself; a lost connection is what another rank said, or its silent death."""
        is_lost = HERE.is_collective and _LOST_CONNECTION.search(str(error)) is not None
        if self._ranks.world_size == 1 or not is_lost:
            return error
        self._is_over.set()
        with suppress(StoreGoneError):
            if (notice := self._await_notice()) is not None:
                return self._follow(notice)
        return TrainerError(
            f"{self._where()}: lost another rank there ({_first_line(str(error))[:120]}); see what that rank said, and "
            "go on from a checkpoint with --resume",
            RANK_LOST,
        )

    def judge(self, error: NotFiniteError) -> TrainerError:
        """Of what the ranks found, that of the earliest step counts, then of the lowest rank."""
        self._is_over.set()
        if self._ranks.world_size == 1:
            return error
        own = error.found
        with suppress(StoreGoneError):
            self._notices.post_own("not_finite", own.to_json())
            time.sleep(_GRACE_S / 2)
            others = map(NotFinite.from_json, self._notices.of_others("not_finite").values())
            earliest = min((own, *others), key=lambda found: (found.step, found.rank))
            if earliest.rank != own.rank:
                notice = Notice(rank=earliest.rank, exit_code=error.exit_code, message=NotFiniteError(earliest).message)
                return self._follow(notice)
        return error

    def describe_termination(self) -> str:
        with suppress(StoreGoneError):
            if self._ranks.world_size > 1 and (notice := self._await_notice()) is not None:
                return self._follow(notice).message
        return f"{self._where()}{self._pending()}: told to end (SIGTERM); go on from a checkpoint with --resume"

    def _await_notice(self) -> Notice | None:
        """Another rank's notice; a rank that fails says so within the grace time."""
        deadline_s = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline_s:
            notice = self._notices.first()
            if notice is not None and notice.rank != self._ranks.rank:
                return notice
            time.sleep(0.05)
        return None

    def _follow(self, notice: Notice) -> TrainerError:
        return _FollowingError(
            f"{self._where()}: ended with rank {notice.rank}, which said: {notice.message}", notice.exit_code
        )

    def _where(self) -> str:
        return f"rank {self._ranks.rank}, {HERE.describe()}"

    def _pending(self) -> str:
        """The collective that the backend waits for, if it is known."""
        pending = flight_recorder.pending_collectives(self._ranks.device)
        return f", waiting for {pending[0].describe()}" if pending else ""

    def _receive(self, *_: object) -> None:
        if not self._is_over.is_set():
            self._is_over.set()
            raise Terminated(TERMINATED)

    # The thread

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # the sockets close when the watch ends
            while not self._is_over.is_set():
                if select.select([self._signals], [], [], _POLL_S)[0]:
                    self._end_if_stuck(lambda: TrainerError(self.describe_termination(), TERMINATED))
                    return
                if self._ranks.world_size > 1:
                    self._look()

    def _look(self) -> None:
        try:
            notice = self._notices.first()
        except StoreGoneError:
            # A rank that is done may be gone a moment earlier than this one, but not for long.
            if not self._is_over.wait(_STORE_GONE_S):
                problem = f"{self._where()}: rank 0, which keeps the ranks together, is gone; go on with --resume"
                _end(TrainerError(problem, RANK_LOST))
            return
        if notice is not None and notice.rank != self._ranks.rank:
            with suppress(StoreGoneError):
                self._notices.post_own("position", HERE.describe())
            self._end_if_stuck(lambda: self._follow(notice))
        elif (waited := self._describe_hang()) is not None:
            self._end_hung(waited)

    def _end_if_stuck(self, error: Callable[[], TrainerError]) -> None:
        """Leave the main thread the time to end by itself, and then end the process."""
        if not self._is_over.wait(_GRACE_S):
            failure = error()
            self.on_failure(failure)
            _end(failure)

    def _describe_hang(self) -> str | None:
        """What has been waited for too long, or None."""
        is_compiling = self._listener.num_steps <= NUM_COMPILING_STEPS
        limit_s = max(self._timeout_s, COMPILING_TIMEOUT_S) if is_compiling else self._timeout_s
        waited_s = HERE.seconds_in_collective()
        if self._ranks.device.type != "cuda" and waited_s <= limit_s:  # its host would wait
            return None
        pending = flight_recorder.pending_collectives(self._ranks.device)
        if self._ranks.device.type == "cuda":
            return pending[0].describe() if pending and pending[0].age_s > limit_s else None
        return pending[0].describe() if pending else f"it since {waited_s:.0f} s"

    def _end_hung(self, waited: str) -> None:
        """Ask where the other ranks are, and end."""
        self._is_over.set()
        where, others = self._where(), ""
        with suppress(StoreGoneError):
            message = f"{where}: waits for {waited}"
            self._notices.post(Notice(rank=self._ranks.rank, exit_code=COLLECTIVE_HUNG, message=message))
            time.sleep(_GRACE_S)
            others = "".join(f"; rank {rank} is at {at}" for rank, at in self._notices.of_others("position").items())
        _end(
            TrainerError(
                f"{where}: waits for {waited}, over the {self._timeout_s:g} s of --collective-timeout{others}; a rank "
                "hangs or is very slow: go on from a checkpoint with --resume, or allow more seconds",
                COLLECTIVE_HUNG,
            )
        )


def _end(error: TrainerError) -> NoReturn:
    """Say it and end the process at once: its main thread is stuck in a call that nothing interrupts."""
    print(f"trainer: error: {error.message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(error.exit_code)


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
