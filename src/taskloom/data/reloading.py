"""Loaders that are made anew every few epochs, as a `reload_dataloaders_every_n_epochs` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from taskloom.core.errors import explain
from taskloom.data.generators import Generators, States
from taskloom.data.lengths import loader_length
from taskloom.data.source import Source, check_kind


class Reloading:
    """What a method that makes loaders returned, and returns again every few epochs.

    Args:
        make: calls the method as in the epoch that it is given; after a resume that is an earlier one.
        every: epochs.
        epoch: returns the number of the present epoch.

    Attributes:
        made: what it returned last.
        turn: how often `every` epochs had passed then.

    Raises:
        ValueError: `every` is not a whole number above 0.
    """

    def __init__(self, make: Callable[[int], Any], every: int, epoch: Callable[[], int]) -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(
                explain(
                    "reload_dataloaders_every_n_epochs is a whole number of epochs, 0 for never",
                    got=every,
                    fix="reload_dataloaders_every_n_epochs = 1",
                )
            )
        self._make, self._every, self._epoch = make, every, epoch
        self.made, self.turn = make(epoch()), self.turn_of(epoch())

    def turn_of(self, epoch: int) -> int:
        """Return how often loaders have been made anew by an epoch."""
        return epoch // self._every

    def make(self, turn: int) -> None:
        """Make the loaders anew."""
        self.made, self.turn = self._make(turn * self._every), turn

    def present(self) -> Any:
        """Return the loaders of the present epoch, made anew if that is due."""
        turn = self.turn_of(self._epoch())
        if turn != self.turn:
            self.make(turn)
        return self.made


class ReloadedLoader:
    """One loader of those that are made anew. Its length is that of the first, which later ones may not have.

    Args:
        loaders: that are made anew.
        pick: returns this one of them.
    """

    def __init__(self, loaders: Reloading, pick: Callable[[Any], Iterable[Any]]) -> None:
        self.loaders, self._pick = loaders, pick
        self._length = loader_length(pick(loaders.made))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pick(self.loaders.present()))

    def __len__(self) -> int:
        if self._length == float("inf"):
            raise TypeError(explain("The length of a loader that is made anew is unknown", why="it has none"))
        return int(self._length)

    @property
    def loader(self) -> Iterable[Any]:
        """The user's loader that was made last."""
        return self._pick(self.loaders.made)


class ReloadedSource(Source):
    """The training loader of every few epochs, each with a position of its own.

    Args:
        loader: that is made anew.
        generators: of the process.
        source_of: makes a source of the user's loader.
    """

    kind = "a loader that is made anew every few epochs"

    def __init__(
        self, loader: ReloadedLoader, generators: Generators, source_of: Callable[[Iterable[Any]], Source]
    ) -> None:
        self._loader, self._generators, self._source_of = loader, generators, source_of
        self._made_with: States | None = None  # for the first one, what was there when the process started
        self._source = source_of(loader.loader)

    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Make the loader anew if that is due."""
        turn = self._loader.loaders.turn_of(epoch)
        if turn != self._loader.loaders.turn:
            self._made_with = self._generators.states()
            self._renew(turn)
        self._source.begin_epoch(epoch, resumed=resumed)

    def _renew(self, turn: int) -> None:
        self._source.close()
        self._loader.loaders.make(turn)
        self._source = self._source_of(self._loader.loader)

    def batches(self, done: int) -> Iterator[Any]:
        """Iterate over the present loader."""
        return self._source.batches(done)

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return the position in the present loader, and with which generators that was made."""
        turn = self._loader.loaders.turn_of(epoch)
        present = turn == self._loader.loaders.turn
        return {
            "kind": self.kind,
            "turn": turn,
            "made_with": self._made_with if present else None,
            "position": self._source.state_dict(epoch, done) if present else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the loader of the saved position, and restore that.

        Raises:
            CheckpointError: the loader cannot go on from there.
        """
        check_kind(state, self.kind)
        if state["position"] is None:
            self._loader.loaders.turn = -1  # one is due in the epoch that begins
            return
        if state["made_with"] is not None:
            self._made_with = state["made_with"]
            with self._generators.kept():
                self._generators.restore(state["made_with"])
                self._renew(state["turn"])
        self._source.load_state_dict(state["position"])

    def close(self) -> None:
        """Close the present loader."""
        self._source.close()
