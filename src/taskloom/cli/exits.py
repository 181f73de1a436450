"""How the commands leave: exit codes and what is printed on the way out."""

from __future__ import annotations

import sys
from collections.abc import Callable

from taskloom.core.errors import CheckpointError, ConfigError, MissingPackageError


def exit_cleanly(action: Callable[[], object]) -> None:
    """Run `action` for a command line; errors of the user's code keep their traceback.

    Raises:
        SystemExit: with 2 after a configuration error and with 1 for a checkpoint that cannot be read or written, both
            printed without a traceback; with 130 after Ctrl-C.
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
