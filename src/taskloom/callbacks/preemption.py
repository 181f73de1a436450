"""`Preemption`: which signals ask a run to leave, and what becomes of its job then."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from taskloom.callbacks.base import Callback
from taskloom.core.errors import ConfigError, explain, nearest
from taskloom.core.interval import parse_seconds

_DEFAULT = ("SIGTERM", "SIGUSR1")
_UNCATCHABLE = ("SIGKILL", "SIGSTOP")
_OURS = {
    "SIGINT": "Ctrl-C finishes the step in hand, saves and raises KeyboardInterrupt already",
    "SIGCHLD": "it tells of child processes, those of a DataLoader among them",
}


class Preemption(Callback):
    """Settings of how a run leaves when it is asked to; one with the defaults is active where none is given.

    A signal is only taken note of. At the next step the run saves a checkpoint that continues exactly there, whatever
    its policies say, ends, and raises `Preempted`, which ends the process with exit code 75.

    Args:
        signals: names of the signals that ask to leave; `()` for none.
        requeue: whether rank 0 hands the job back to its scheduler once the checkpoint is verified. `"auto"` does so in
            a batch job of Slurm, when there is a checkpoint, for every signal but SIGTERM: that one is also what
            `scancel` sends, and what Slurm sends to a job that it requeues by itself.
        requeue_command: what to run for that, as a list of words and never through a shell; `"{job}"` stands for the
            name of the job. `["scontrol", "requeue", "{job}"]` in Slurm.
        grace: how long after the signal the process will be killed, such as `"30 seconds"`: where the step in hand is
            not over at nine tenths of it, what the process was doing is printed on stderr.

    Raises:
        ConfigError: a signal is unknown or cannot be used, or another argument cannot be meant; lists every problem.
    """

    def __init__(
        self,
        signals: Sequence[str] = _DEFAULT,
        requeue: Literal["auto"] | bool = "auto",
        requeue_command: Sequence[str] | None = None,
        grace: str | float | timedelta | None = None,
    ) -> None:
        problems = []
        if isinstance(signals, str):
            problems.append(explain("signals is a list of names", got=signals, fix=f"signals=[{signals!r}]"))
            signals = ()
        problems += [problem for name in signals if (problem := _problem_of(str(name))) is not None]
        if requeue not in ("auto", True, False):
            problems.append(explain("requeue is 'auto', True or False", got=requeue))
        if isinstance(requeue_command, str) or (requeue_command is not None and not requeue_command):
            problems.append(
                explain(
                    "requeue_command is a list of words",
                    got=requeue_command,
                    why="it is run as it is, without a shell that would take it apart",
                    fix='requeue_command=["scontrol", "requeue", "{job}"]',
                )
            )
            requeue_command = None
        try:
            self.grace = None if grace is None else parse_seconds(grace)
        except (TypeError, ValueError) as error:
            problems.append(f"grace: {error}")
        if problems:
            raise ConfigError(problems)
        self.signals = tuple(str(name) for name in signals if str(name) in signal.Signals.__members__)
        self.requeue = requeue
        self.requeue_command = None if requeue_command is None else [str(word) for word in requeue_command]


def _problem_of(name: str) -> str | None:
    """Return what is wrong with a signal, None if it can be used; the default ones may be missing on a system."""
    if name in _UNCATCHABLE:
        return explain(f"{name} cannot be noticed by the process that gets it", fix="use SIGTERM or SIGUSR1")
    if name in _OURS:
        return explain(f"{name} cannot ask a run to leave", why=_OURS[name], fix="use SIGTERM or SIGUSR1")
    if name not in signal.Signals.__members__ and name not in _DEFAULT:
        known = [known for known in signal.Signals.__members__ if known not in (*_UNCATCHABLE, *_OURS)]
        return explain(f"There is no signal {name!r}", fix=f"use SIGTERM or SIGUSR1.{nearest(name, known)}")
    return None
