"""Where in its data a run is: the epoch, the batches that were trained on, and what their order follows from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from taskloom.data import NamedLoader
from taskloom.data.generators import Generators, States
from taskloom.data.lengths import loader_length
from taskloom.loop.run import Run
from taskloom.report.text import format_duration


class Position:
    """The position of a run in its training data.

    Args:
        run: the parts of the stage.
        loader: training batches.
        restart: a checkpoint's position is not taken up; the epoch it lies in begins anew.

    Attributes:
        epoch_read: the batches of the epoch are done, though its validation and its end may not be.
        restart: as given.
    """

    def __init__(self, run: Run, loader: NamedLoader, *, restart: bool = False) -> None:
        from taskloom.data.sources import source_of  # only a run that trains needs it

        self._progress, self._loader = run.trainer.progress, loader
        self._message = run.reporter.message
        self._source = source_of(
            loader.loader, generators_of(run), rank=run.strategy.global_rank, told=self._tell_reading_again
        )
        self.epoch_read, self.restart = False, restart

    def begin_epoch(self) -> None:
        """Tell samplers and data sets the number of the epoch."""
        self._source.begin_epoch(self._progress.epochs, resumed=bool(self._progress.batches_in_epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return, as data, what a new process needs to go on from here."""
        source = self._source.state_dict(self._progress.epochs, self._progress.batches_in_epoch)
        return {"epoch_read": self.epoch_read, "source": source}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; `Progress` has been restored before.

        Raises:
            CheckpointError: the loader cannot go on from there.
        """
        self.epoch_read = state["epoch_read"]
        if not self.restart:
            self._source.load_state_dict(state["source"])
        elif not self.epoch_read:
            self._progress.batches_in_epoch = 0

    def batches(self, transfer: Callable[[Any], Any] | None, most: float) -> Iterator[Any]:
        """Iterate over the epoch, or over the rest of it, up to its batch number `most`."""
        done = self._progress.batches_in_epoch
        batches = self._source.batches(done)
        if not math.isinf(most) and most != loader_length(self._loader.loader):
            batches = islice(batches, int(most) - done)
        return batches if transfer is None else map(transfer, batches)

    def _tell_reading_again(self, read: int, total: int, seconds: float) -> None:
        self._message(
            f"Reading the training data again up to the checkpoint's position: batch {read:,} of {total:,}, about "
            f"{format_duration(seconds)} left"
        )

    def close(self) -> None:
        """End worker processes that persist."""
        self._source.close()


def generators_of(run: Run) -> Generators:
    """Return the generators of this process and its device."""
    return Generators(run.strategy.accelerator, run.strategy.device)


def generator_states(run: Run) -> States:
    """Return the state of every random generator of this process, as data."""
    return generators_of(run).states()


def restore_generators(run: Run, states: Mapping[str, Any]) -> None:
    """Restore what `generator_states` returned."""
    generators_of(run).restore(states)
