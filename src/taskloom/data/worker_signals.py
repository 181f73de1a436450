"""Workers of a `DataLoader` that outlive a signal to their whole group.

A scheduler signals all processes of a job at once. Torch gives workers a handler of its own for SIGTERM, under which
they die; the loader then fails in the middle of the step that the process wanted to finish before it leaves. So workers
put back what they have inherited from the process that forked them, if that is an `InheritedHandler`.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader


class InheritedHandler:
    """A signal handler that also decides for workers that were forked while it was installed.

    Args:
        handle: called with the signal's number and the frame, in whichever process gets it.
    """

    def __init__(self, handle: Callable[[int, FrameType | None], None]) -> None:
        self._handle = handle

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._handle(number, frame)


def keep_inherited_handler() -> None:
    """Put back, in a worker, the handler of SIGTERM that torch has replaced."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, InheritedHandler):
        signal.signal(signal.SIGTERM, handler)


class _Start:
    """A `worker_init_fn` that keeps the inherited handler and calls the user's own."""

    def __init__(self, own: Callable[[int], Any] | None) -> None:
        self._own = own

    def __call__(self, worker_id: int) -> None:
        keep_inherited_handler()
        if self._own is not None:
            self._own(worker_id)


def outliving(loader: Any) -> Any:
    """Return a shallow copy of a `DataLoader` whose workers keep the inherited handler; anything else as it is."""
    if not isinstance(loader, DataLoader) or not loader.num_workers:
        return loader
    view: DataLoader[Any] = copy.copy(loader)
    vars(view).update(worker_init_fn=_Start(loader.worker_init_fn), _iterator=None)
    return view
