"""How the commands leave: exit codes and what is printed on the way out."""

from __future__ import annotations

import sys
from collections.abc import Callable

from taskloom.core.errors import ConfigError, MissingPackageError


def exit_cleanly(action: Callable[[], object]) -> None:
    """Run `action` for a command line: a configuration error is printed and exits with 2, Ctrl-C exits with 130.

    Errors of the user's code keep their traceback.

    Raises:
        SystemExit: in those two cases.
    """
    try:
        action()
    except (ConfigError, MissingPackageError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
