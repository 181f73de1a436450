"""Being asked to leave: a signal is taken note of, and the loops look for the note between two pieces of work.

Nothing else happens in a signal handler, because a step, a write or a hook may be in hand. Handlers of the user's
program are called after ours and are there again when the stage is over. Processes that were forked while a stage ran
(the workers of a `DataLoader`, a user's own) have inherited the handler:

* a worker lives on if this process was asked to leave as well, since a scheduler signals a whole group of processes and
  the step in hand needs its batch; a signal that is meant for the worker alone ends it as ever;
* any other child behaves as if the handler had never been there.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.utils.data import get_worker_info

from taskloom.callbacks import Callback
from taskloom.callbacks.preemption import Preemption
from taskloom.core.errors import ConfigError, explain
from taskloom.data.worker_signals import InheritedHandler
from taskloom.launch.environments import Job, find_job

# How long a worker waits for its parent to be signalled too, in seconds: a group is signalled within microseconds.
_TOGETHER = 0.5
_REQUEUE_SECONDS = 30.0
_QUIET, _ASKED = 0, 1

Say = Callable[[str], None]


def settings_of(callbacks: Sequence[Callback]) -> Preemption:
    """Return the `Preemption` among the callbacks, or one with the defaults.

    Raises:
        ConfigError: there are several.
    """
    given = [callback for callback in callbacks if isinstance(callback, Preemption)]
    if len(given) > 1:
        raise ConfigError([explain(f"There are {len(given)} Preemption callbacks", fix="keep one of them")])
    return given[0] if given else Preemption()


class Notice:
    """Whether this process was asked to leave.

    Args:
        wake: called when it is, from within a signal handler, so that the loop looks at the end of the step.

    Attributes:
        received: name of the signal that arrived and has not been answered; None when there is none.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._shared = mmap.mmap(-1, 1)  # also seen by processes that are forked from this one
        self._process = os.getpid()
        self._watch: threading.Timer | None = None
        self.received: str | None = None
        self.received_at = 0.0

    def answer(self) -> None:
        """The process leaves because of it, or does not have to."""
        self.received = None

    @contextmanager
    def listening(self, settings: Preemption, say: Say) -> Generator[None, None, None]:
        """Take note of signals for the length of a `with` block.

        Args:
            settings: which.
            say: told of those that cannot be noticed.
        """
        if not settings.signals:
            yield
            return
        if threading.current_thread() is not threading.main_thread():
            say(
                f"{' and '.join(settings.signals)} are not noticed, because fit runs in the thread "
                f"{threading.current_thread().name!r}: only the main thread of a process can handle signals."
            )
            yield
            return
        replaced: dict[int, Any] = {}
        self._process = os.getpid()
        self._shared[0] = _ASKED if self.received is not None else _QUIET
        try:
            for name in settings.signals:
                number: int = signal.Signals[name]
                before = signal.getsignal(number)
                if before is None:  # it could not be put back afterwards
                    say(f"{name} is not noticed, because something outside Python handles it.")
                    continue
                replaced[number] = before
                signal.signal(number, InheritedHandler(self._handler(name, before, settings.grace)))
            yield
        finally:
            for each, before in replaced.items():
                signal.signal(each, before)
            self._shared[0] = _QUIET
            if self._watch is not None:
                self._watch.cancel()

    def _handler(self, name: str, before: Any, grace: float | None) -> Callable[[int, FrameType | None], None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            if os.getpid() != self._process:
                self._in_child(number, frame, before)
                return
            self._shared[0] = _ASKED
            if self.received is None:
                self.received, self.received_at = name, time.monotonic()
                self._wake()
                if grace is not None:
                    self._watch = _watch(name, grace)
            if callable(before):
                before(number, frame)

        return on_signal

    def _in_child(self, number: int, frame: FrameType | None, before: Any) -> None:
        if get_worker_info() is not None:
            deadline = time.monotonic() + _TOGETHER
            while time.monotonic() < deadline:
                if self._shared[0] == _ASKED:
                    return
                time.sleep(0.005)
            os._exit(0)  # as torch lets a worker leave that its parent has told to
        signal.signal(number, before)
        os.kill(os.getpid(), number)


def _watch(name: str, grace: float) -> threading.Timer:
    """Print what every thread does when the grace is nearly over; the timer is cancelled when the process leaves."""

    def show() -> None:
        stream = sys.__stderr__
        if stream is not None:
            stream.write(f"{name} arrived {0.9 * grace:g} s ago, and the work in hand is not over:\n")
            stream.flush()
            faulthandler.dump_traceback(file=stream, all_threads=True)

    timer = threading.Timer(0.9 * grace, show)
    timer.daemon = True
    timer.start()
    return timer


@dataclass(frozen=True)
class Requeue:
    """What came of handing the job back.

    Attributes:
        done: the scheduler has taken it.
        text: what happened, for people; empty where there was nothing to do.
    """

    done: bool = False
    text: str = ""


def requeue(settings: Preemption, received: str, *, saved: bool, environment: Mapping[str, str]) -> Requeue:
    """Hand the job back to its scheduler, if the settings ask for it; never raises.

    Args:
        settings: whether and how.
        received: the signal.
        saved: there is a checkpoint to continue from.
        environment: variables in which a scheduler tells of the job.
    """
    if settings.requeue is False:
        return Requeue()
    job = find_job(environment)
    command = settings.requeue_command or (list(job.requeue_command) if job is not None else [])
    if settings.requeue == "auto":
        if not command:
            return Requeue()
        reason = _why_not(job, received, saved)
        if reason:
            return Requeue(text=f"not requeued, because {reason}")
    if not command:
        return Requeue(text="not requeued, because no scheduler was recognised; set Preemption(requeue_command=[...])")
    if job is None and any("{job}" in word for word in command):
        return Requeue(text="not requeued, because no scheduler was recognised and requeue_command names its {job}")
    return _run([word.replace("{job}", job.name) if job is not None else word for word in command])


def _why_not(job: Job | None, received: str, saved: bool) -> str:
    if received == "SIGTERM":
        return "SIGTERM is also how a job is cancelled; Preemption(requeue=True) requeues for it too"
    if not saved:
        return "there is no checkpoint to continue from"
    if job is not None and job.interactive:
        return f"{job.name} is an interactive job"
    return ""


def _run(command: list[str]) -> Requeue:
    """Run a command without a shell and say how it ended."""
    shown = " ".join(command)
    try:
        done = subprocess.run(  # noqa: S603 - the user's own words, or scontrol with the number of their job
            command, capture_output=True, text=True, timeout=_REQUEUE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Requeue(text=f"not requeued: `{shown}` did not end within {_REQUEUE_SECONDS:g} s")
    except OSError as error:
        return Requeue(text=f"not requeued: `{shown}` could not be run ({error})")
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or "it said nothing"
        return Requeue(text=f"not requeued: `{shown}` ended with {done.returncode}: {said}")
    return Requeue(done=True, text=f"requeued by `{shown}`")
