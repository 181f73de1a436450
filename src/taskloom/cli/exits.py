"""How the commands leave: exit codes and what is printed on the way out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from taskloom.core.errors import CheckpointError, ConfigError, MissingPackageError, Preempted


def exit_cleanly(action: Callable[[], object]) -> None:
    """Run `action` for a command line; errors of the user's code keep their traceback.

    Raises:
        SystemExit: with 2 after a configuration error and with 1 for a checkpoint that cannot be read or written, both
            printed without a traceback; with 130 after Ctrl-C, and with 75 (`EX_TEMPFAIL`, try again later) after a
            signal that asked a run to leave.
    """
    try:
        action()
    except (ConfigError, MissingPackageError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Preempted:
        for name in {"SIGTERM", "SIGUSR1"} & signal.Signals.__members__.keys():
            signal.signal(signal.Signals[name], signal.SIG_IGN)  # schedulers repeat themselves, and we are leaving
        raise
