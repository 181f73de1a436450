"""Loaders and data sets that know where they are: `state_dict` says it, `load_state_dict` goes back there.

The pair of methods is that of torchdata's `StatefulDataLoader`, of Hugging Face's iterable data sets, and of many
loaders of people's own. Nothing that was read is read again. A state is copied as soon as its batch has been read,
because a loader is read ahead of the training, and by the time of a checkpoint it stands further on.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from taskloom.data.generators import Generators
from taskloom.data.isolation import Isolated
from taskloom.data.lengths import is_reliable
from taskloom.data.rereading import announced
from taskloom.data.seeding import OrderedByEpoch, stream_seed
from taskloom.data.source import READ_AHEAD, Source, Stateful, check_kind


class StatefulSource(Source):
    """Batches of a loader that has a state, or whose data set, read by this process, has one.

    Args:
        loader: the user's.
        holder: of the state: the loader, or its data set.
        generators: of the process.
        rank: of the process.
        read_ahead: batches are taken before the one before is trained on; always so without a reliable length.
    """

    kind = "a loader or data set with a state of its own"

    def __init__(
        self,
        loader: Iterable[Any],
        holder: Stateful,
        generators: Generators,
        *,
        rank: int = 0,
        read_ahead: bool = False,
    ) -> None:
        self._loader, self._holder, self._generators, self._rank = loader, holder, generators, rank
        self._announced: list[OrderedByEpoch] = announced(loader)
        self._loader_knows, self._touched = isinstance(loader, Stateful), False
        workers_read = isinstance(loader, DataLoader) and loader.num_workers > 0
        self._is_apart = not workers_read and (read_ahead or not is_reliable(loader))
        self._epoch = 0
        self._seed = ""  # 128 bits in hexadecimal, which JSON can hold
        self._known: deque[tuple[int, Any]] = deque(maxlen=READ_AHEAD + 1)  # batches read, and the state after them
        self._read = self._began_in = -1
        self._ended = False
        self._restored: Mapping[str, Any] | None = None

    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Tell the loader and its data set the number of the epoch, where they take one."""
        self._epoch = epoch
        for each in self._announced:
            each.set_epoch(epoch)
        if self._restored is not None and self._restored["began_in"] != epoch:
            self._stand_between_epochs(self._restored)
            self._restored = None

    def batches(self, done: int) -> Iterator[Any]:
        """Iterate from batch `done` on; none before it is read."""
        restored, self._restored = self._restored, None
        if restored is None:
            self._seed = f"{stream_seed(self._generators.states(), self._epoch, self._rank):032x}"
            self._begin(0, self._live_state())
            return self._reading(iter(self._loader))
        self._begin(done, restored["state"])
        if restored["ended"]:
            self._stand_between_epochs(restored)
            self._ended = True
            return iter(())
        with self._generators.kept():
            batches = iter(self._loader)
        return self._reading(batches)

    def _begin(self, done: int, state: Any) -> None:
        self._began_in, self._read, self._ended, self._touched = self._epoch, done, False, True
        self._known.clear()
        self._known.append((done, state))

    def _reading(self, batches: Iterator[Any]) -> Iterator[Any]:
        if self._is_apart:
            batches = Isolated(batches, int(self._seed, 16), self._read)
        for batch in batches:
            self._read += 1
            self._known.append((self._read, copy.deepcopy(self._holder.state_dict())))
            yield batch
        self._ended = True

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return the state of the loader or data set after `done` batches."""
        within = epoch == self._began_in and not (self._ended and done == self._read)
        if within:
            state = dict(self._known)[done]
        elif self._restored is not None:
            return dict(self._restored)
        else:
            state = self._live_state()
        return {
            "kind": self.kind,
            "began_in": self._began_in if epoch == self._began_in else -1,
            "ended": self._ended,
            "seed": self._seed,
            "state": state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand the loader or data set its state.

        Raises:
            CheckpointError: the state is that of another kind of loader.
        """
        check_kind(state, self.kind)
        self._restored, self._seed = state, state["seed"]
        if state["state"] is not None:
            self._holder.load_state_dict(copy.deepcopy(state["state"]))
            self._touched = True

    def _live_state(self) -> Any:
        # A loader that nothing was read from has no state worth keeping, and asking for it may start its workers.
        return copy.deepcopy(self._holder.state_dict()) if self._touched else None

    def _stand_between_epochs(self, restored: Mapping[str, Any]) -> None:
        """Bring a loader that was just restored to where it stood when its epoch was over.

        A loader goes on, when it is next iterated over, from the state it was given. That iteration is used up here.
        """
        if not self._loader_knows or restored["state"] is None:
            return
        with self._generators.kept():
            if restored["ended"]:
                self._holder.state_dict()  # makes a StatefulDataLoader look at the state: its epoch is over
            else:
                iter(self._loader)
