"""Work that goes on while training does, one piece at a time, whose failure is not lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from taskloom.core.errors import CheckpointError, explain


class BackgroundWriter:
    """Runs saves in a thread of their own, at most one at a time.

    There is a thread only while there is a save, so worker processes that are forked between saves inherit none. It is
    no daemon: an interpreter that ends waits for it.

    Args:
        on_failure: called in the thread after a save has failed, to have the failure collected soon.
    """

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._failure: tuple[str, BaseException] | None = None

    @property
    def is_writing(self) -> bool:
        """Whether a save is in hand."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether a save has failed that nobody has been told of."""
        return self._failure is not None

    def submit(self, save: Callable[[], None], what: str) -> None:
        """Start a save, once the one before has ended.

        Args:
            save: to run; nothing that it reads may change meanwhile.
            what: it writes, for the message of a failure.

        Raises:
            CheckpointError: the save before has failed.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(save, what), name=f"saving {what}")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save in hand.

        Raises:
            CheckpointError: it, or one before, has failed; the cause is what it raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the failure of a save that has ended; does not wait.

        Raises:
            CheckpointError: it has failed; the cause is what it raised.
        """
        if self._failure is None:
            return
        (what, error), self._failure = self._failure, None
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{error} (found while training went on)") from error
        raise CheckpointError(
            explain(f"{what} could not be saved while training went on", got=f"{type(error).__name__}: {error}")
        ) from error

    def _run(self, save: Callable[[], None], what: str) -> None:
        time.sleep(0.001)  # a new thread holds the interpreter; give it back to the training that has just started this
        try:
            save()
        except BaseException as error:
            self._failure = (what, error)
            self._on_failure()
