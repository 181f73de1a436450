"""Batches that are read once and kept, to overfit on: the same in every epoch, and after a resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from taskloom.data.generators import Generators, States, own_generators, own_states, restore_own_states
from taskloom.data.seeding import stream_seed
from taskloom.data.source import Source, check_kind


class KeptBatches:
    """The first batches of a loader.

    Args:
        loader: the user's.
        source: makes one of its batches.
        generators: of the process.
        most: how many to keep; `inf` for all.
    """

    def __init__(
        self, loader: Iterable[Any], source: Callable[[], Source], generators: Generators, most: float
    ) -> None:
        self._source, self._generators = source, generators
        self._most = None if math.isinf(most) else int(most)
        self._own = own_generators({"loader": loader})
        self.drawn_with: States = {"process": generators.states(), "own": own_states(self._own)}
        self._batches = self._read()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def after(self, done: int) -> Iterator[Any]:
        """Iterate from one batch on."""
        return islice(self._batches, done, None)

    def read_again(self, drawn_with: States) -> None:
        """Keep the batches that another process kept, in place of these.

        Args:
            drawn_with: the generators when that read them.
        """
        if stream_seed(drawn_with) == stream_seed(self.drawn_with):
            return
        with self._generators.kept():
            self._generators.restore(drawn_with["process"])
            restore_own_states(self._own, drawn_with["own"])
            self.drawn_with, self._batches = drawn_with, self._read()

    def _read(self) -> list[Any]:
        source = self._source()
        source.begin_epoch(0, resumed=False)
        try:
            return list(islice(source.batches(0), self._most))
        finally:
            source.close()


class KeptSource(Source):
    """Kept batches, taken up at any of them.

    Args:
        batches: kept.
    """

    kind = "batches to overfit on"

    def __init__(self, batches: KeptBatches) -> None:
        self._batches = batches

    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Nothing follows from the number of the epoch."""

    def batches(self, done: int) -> Iterator[Any]:
        """Iterate from batch `done` on."""
        return self._batches.after(done)

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return what the batches were drawn with."""
        return {"kind": self.kind, "drawn_with": self._batches.drawn_with}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep the same batches as the run that is continued.

        Raises:
            CheckpointError: it did not overfit.
        """
        check_kind(state, self.kind)
        self._batches.read_again(state["drawn_with"])
