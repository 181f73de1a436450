"""Several loaders as one, with the modes of Lightning's `CombinedLoader`.

Each loader keeps its own order and its own position, so a combination can be left and taken up at any batch if all of
its parts can.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy
import torch

from taskloom.core.errors import CheckpointError, explain
from taskloom.data.lengths import is_reliable, loader_length
from taskloom.data.source import READ_AHEAD, Source, check_kind

_END: Final = object()


class CombinedLoader:
    """Several loaders in one.

    Iterating over it yields `(batch, batch_idx, dataloader_idx)`, as with Lightning's; a training step is given the
    batch alone.

    Args:
        iterables: a list or a dict of loaders; the batch is a list or a dict of their batches.
        mode: `"min_size"` ends with the shortest loader. `"max_size"` ends with the longest, and has `None` in the
            place of batches of those that have ended. `"max_size_cycle"` ends with the longest, and begins the others
            again when they end. `"sequential"` reads one loader after the other; the batch is that of one loader.

    Attributes:
        iterables: as given.
        flattened: the loaders in a list.
        named: the loaders by key, or by number.
        mode: as given.

    Raises:
        ValueError: the mode is unknown, or there is no loader.
        TypeError: something in `iterables` is not a loader.
    """

    def __init__(
        self, iterables: Mapping[str, Iterable[Any]] | Sequence[Iterable[Any]], mode: str = "min_size"
    ) -> None:
        if mode not in _MODES:
            raise ValueError(
                explain("CombinedLoader has no such mode", got=mode, fix=f"mode is one of {', '.join(_MODES)}")
            )
        if not isinstance(iterables, (Mapping, list, tuple)):
            raise TypeError(
                explain(
                    "CombinedLoader takes a list or a dict of loaders",
                    got=iterables,
                    fix="CombinedLoader([one, other]) or CombinedLoader({'one': one, 'other': other})",
                )
            )
        named = dict(iterables) if isinstance(iterables, Mapping) else dict(enumerate(iterables))
        if not named:
            raise ValueError(explain("CombinedLoader was given no loader", fix="pass one loader or more"))
        for name, part in named.items():
            _check_part(name, part)
        self.iterables, self.mode, self.flattened = iterables, mode, list(named.values())
        self.named: Mapping[Any, Iterable[Any]] = named
        self._names = list(named) if isinstance(iterables, Mapping) else None
        self._mode = _MODES[mode]

    def __len__(self) -> int:
        length = self._mode.length([loader_length(part) for part in self.flattened])
        if math.isinf(length):
            raise TypeError(
                explain(
                    f"The length of CombinedLoader(mode={self.mode!r}) is unknown",
                    why="one of its loaders has none",
                    fix="bound the training by max_steps or limit_batches",
                )
            )
        return int(length)

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        for taken in self._mode.batches([_LoaderPart(loader) for loader in self.flattened]):
            yield self.assemble(taken.batch), taken.number, taken.part

    @property
    def is_reliable(self) -> bool:
        """Whether the length tells which batch is the last."""
        return all(is_reliable(part) for part in self.flattened)

    @property
    def is_sequential(self) -> bool:
        """Whether a batch is that of one loader."""
        return self._mode is _MODES["sequential"]

    def batches(self) -> Iterator[Any]:
        """Iterate over the batches alone."""
        return (batch for batch, _, _ in self)

    def assemble(self, batch: Any) -> Any:
        """Return what `_Mode.batches` yields as the collection that the loaders came in."""
        if self.is_sequential or self._names is None:
            return batch
        return dict(zip(self._names, batch, strict=True))

    def source(self, source_of: Callable[[Iterable[Any]], Source]) -> CombinedSource:
        """Return the combination as a source.

        Args:
            source_of: makes one of each loader.
        """
        return CombinedSource(self, self._mode, [source_of(loader) for loader in self.flattened])


def _check_part(name: Any, part: Any) -> None:
    nested = isinstance(part, (Mapping, list, tuple, str, bytes, torch.Tensor, numpy.ndarray))
    if nested or not isinstance(part, Iterable):
        raise TypeError(
            explain(
                f"CombinedLoader takes loaders, and {name!r} is none",
                got=part,
                why="collections within collections are not combined" if nested else "it cannot be iterated over",
                fix="pass a torch.utils.data.DataLoader, another CombinedLoader, or any iterable of batches that is no "
                "list, tuple, dict, text, tensor or array",
            )
        )


# Modes ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Taken:
    """A batch of a combination: `batch` of part `part`, or one of each in a list; its number in that part or in all."""

    batch: Any
    number: int
    part: int


class _Part(ABC):
    """A loader of a combination during one epoch of that.

    Attributes:
        begun: it has been begun in this epoch.
        ended: it has no batch left, until it is begun again.
        was_ended: it has ended at least once in this epoch.
    """

    def __init__(self) -> None:
        self.begun = self.ended = self.was_ended = False
        self._batches: Iterator[Any] = iter(())

    @abstractmethod
    def _begin(self) -> Iterator[Any]:
        """Begin a pass over the loader."""

    def take(self) -> Any:
        """Return the next batch, the first one if it has not been begun; `_END` if there is none."""
        if not self.begun:
            self.begin()
        if self.ended:
            return _END
        batch = next(self._batches, _END)
        if batch is _END:
            self.ended = self.was_ended = True
        return batch

    def begin(self) -> None:
        """Begin it, or begin it again."""
        self.begun, self.ended = True, False
        self._batches = self._begin()


class _LoaderPart(_Part):
    def __init__(self, loader: Iterable[Any]) -> None:
        super().__init__()
        self._loader = loader

    def _begin(self) -> Iterator[Any]:
        return self._loader.batches() if isinstance(self._loader, CombinedLoader) else iter(self._loader)


class _Mode(ABC):
    """How batches of several loaders become one; goes on from wherever the parts are."""

    @abstractmethod
    def length(self, lengths: Sequence[float]) -> float:
        """Return how many batches loaders of these lengths make; `inf` for unknown."""

    @abstractmethod
    def batches(self, parts: Sequence[_Part]) -> Iterator[_Taken]:
        """Iterate over the combination."""


class _InStep(_Mode):
    """One batch of each loader at a time.

    A loader's first batch is read before the next loader begins, so that what each order follows from is drawn apart.
    """

    def batches(self, parts: Sequence[_Part]) -> Iterator[_Taken]:
        number = 0
        while (batch := self._round(parts)) is not _END:
            yield _Taken(batch, number, 0)
            number += 1

    @abstractmethod
    def _round(self, parts: Sequence[_Part]) -> Any:
        """Return a batch of each part, or `_END`."""


class _MinSize(_InStep):
    def length(self, lengths: Sequence[float]) -> float:
        return min(lengths)

    def _round(self, parts: Sequence[_Part]) -> Any:
        batches = []
        for part in parts:
            batch = part.take()
            if batch is _END:
                return _END
            batches.append(batch)
        return batches


class _MaxSize(_InStep):
    def length(self, lengths: Sequence[float]) -> float:
        return max(lengths)

    def _round(self, parts: Sequence[_Part]) -> Any:
        batches = [part.take() for part in parts]
        if all(part.ended for part in parts):
            return _END
        return [None if batch is _END else batch for batch in batches]


class _MaxSizeCycle(_InStep):
    def length(self, lengths: Sequence[float]) -> float:
        return max(lengths)

    def _round(self, parts: Sequence[_Part]) -> Any:
        batches = []
        for number, part in enumerate(parts):
            batch = part.take()
            if batch is _END:
                if all(each.was_ended for each in parts):
                    return _END
                part.begin()
                batch = part.take()
                if batch is _END:
                    raise ValueError(
                        explain(
                            f"Loader {number} of CombinedLoader(mode='max_size_cycle') yielded no batch when it was "
                            f"begun again",
                            why="it ends before another one, so its batches are wanted again",
                            fix="pass something that can be iterated over more than once and is not empty",
                        )
                    )
            batches.append(batch)
        return batches


class _Sequential(_Mode):
    def length(self, lengths: Sequence[float]) -> float:
        return sum(lengths)

    def batches(self, parts: Sequence[_Part]) -> Iterator[_Taken]:
        for which, part in enumerate(parts):
            number = 0
            while (batch := part.take()) is not _END:
                yield _Taken(batch, number, which)
                number += 1


_MODES: Final[Mapping[str, _Mode]] = {
    "min_size": _MinSize(),
    "max_size": _MaxSize(),
    "max_size_cycle": _MaxSizeCycle(),
    "sequential": _Sequential(),
}


# As a source ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a part is.

    Attributes:
        turn: number of the pass over the loader, over all epochs.
        done: batches of it; None between two epochs, when that pass is over for good.
        ended: it has no batch left.
        was_ended: it has ended in this epoch.
    """

    turn: int
    done: int | None
    ended: bool
    was_ended: bool


class _SourcePart(_Part):
    """A part that can be left and taken up.

    By the time of a checkpoint it may have been read on, even into another pass. So what it would be asked for is kept
    when a pass is left, and a checkpoint holds how the passes began that were begun since.

    Args:
        source: of the loader.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source, self.turn, self.done = source, -1, 0
        self._left: dict[tuple[int, int | None], dict[str, Any]] = {}
        self._places: deque[_Place] = deque(maxlen=READ_AHEAD + 1)  # at the last batches of the combination
        self._begun_since: list[Mapping[str, Any]] = []

    def place(self) -> _Place:
        """Return where it is."""
        return _Place(self.turn, self.done if self.begun else None, self.ended, self.was_ended)

    def note(self) -> None:
        """Remember where it is at a batch of the combination."""
        self._places.append(self.place())

    def take(self) -> Any:
        batch = super().take()
        self.done += batch is not _END
        return batch

    def _begin(self) -> Iterator[Any]:
        self._leave()
        self.turn, self.done = self.turn + 1, 0
        known = bool(self._begun_since)
        if known:
            self.source.load_state_dict(self._begun_since.pop(0))
        self.source.begin_epoch(self.turn, resumed=known)
        return self.source.batches(0)

    def _leave(self) -> None:
        wanted = {(place.turn, place.done) for place in self._places}
        oldest = min((turn for turn, _ in wanted), default=self.turn)
        self._left = {
            (turn, done): state
            for (turn, done), state in self._left.items()
            if (turn, done) in wanted or (done == 0 and turn > oldest)
        }
        for turn, done in wanted:
            if turn == self.turn:
                self._left[turn, done] = self._state(turn, done)
        if self.begun and oldest < self.turn:
            self._left[self.turn, 0] = self.source.state_dict(self.turn, 0)

    def _state(self, turn: int, done: int | None) -> dict[str, Any]:
        if (turn, done) in self._left:
            return self._left[turn, done]
        return self.source.state_dict(turn + 1, 0) if done is None else self.source.state_dict(turn, done)

    def begin_combination(self, epoch: int) -> None:
        """Stand before an epoch of the combination."""
        self._places.clear()
        self._left.clear()
        self.begun = self.ended = self.was_ended = False
        self._batches = iter(())
        if self.turn < 0:
            self.turn = epoch - 1

    def state_dict(self, back: int | None) -> dict[str, Any]:
        """Return where it was.

        Args:
            back: so many batches of the combination ago; None for where it is, with its epoch over.
        """
        place = _Place(self.turn, None, False, False) if back is None else self._places[-1 - back]
        since = range(place.turn + 1, self.turn + 1)
        return {
            "turn": place.turn,
            "done": place.done,
            "ended": place.ended,
            "was_ended": place.was_ended,
            "state": self._state(place.turn, place.done),
            "begun_since": [
                self._left[turn, 0] if turn < self.turn else self.source.state_dict(turn, 0) for turn in since
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.source.load_state_dict(state["state"])
        self.turn, self._begun_since = state["turn"], list(state["begun_since"])

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, which was loaded, in the same epoch of the combination."""
        self.ended, self.was_ended, self.begun = state["ended"], state["was_ended"], state["done"] is not None
        self.done = state["done"] or 0
        if self.begun and not self.ended:
            self.source.begin_epoch(self.turn, resumed=True)
            self._batches = self.source.batches(self.done)
        self.note()


class CombinedSource(Source):
    """A combination of loaders as a source.

    Args:
        loader: the combination.
        mode: how batches are combined.
        sources: of its loaders.
    """

    kind = "several loaders combined"

    def __init__(self, loader: CombinedLoader, mode: _Mode, sources: Sequence[Source]) -> None:
        self._loader, self._mode = loader, mode
        self._parts = [_SourcePart(source) for source in sources]
        self._epoch, self._began_in, self._read = 0, -1, 0
        self._ended = False
        self._restored: Mapping[str, Any] | None = None

    def begin_epoch(self, epoch: int, *, resumed: bool) -> None:
        """Note the number of the epoch; each part is told its own when it is begun."""
        self._epoch = epoch
        if self._restored is not None and self._restored["epoch"] != epoch:
            self._restored = None

    def batches(self, done: int) -> Iterator[Any]:
        """Iterate from batch `done` on; each part goes on from where it was."""
        restored, self._restored = self._restored, None
        self._began_in, self._read, self._ended = self._epoch, done, False
        for part in self._parts:
            part.begin_combination(self._epoch)
        if restored is None:
            for part in self._parts:
                part.note()
        elif restored["over"]:
            self._ended = True
            return iter(())
        else:
            for part, state in zip(self._parts, restored["parts"], strict=True):
                part.take_up(state)
        return self._reading()

    def _reading(self) -> Iterator[Any]:
        for taken in self._mode.batches(self._parts):
            self._read += 1
            for part in self._parts:
                part.note()
            yield self._loader.assemble(taken.batch)
        self._ended = True

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return where each part was after `done` batches."""
        if self._restored is not None:
            return dict(self._restored)
        within = epoch == self._began_in
        over = within and self._ended and done == self._read
        back = self._read - done if within and not over else None
        return {
            "kind": self.kind,
            "mode": self._loader.mode,
            "epoch": epoch if within else -1,
            "over": over,
            "parts": [part.state_dict(back) for part in self._parts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: the state is that of another combination.
        """
        check_kind(state, self.kind)
        saved, now = (state["mode"], len(state["parts"])), (self._loader.mode, len(self._parts))
        if saved != now:
            raise CheckpointError(
                explain(
                    f"The checkpoint has a position in {saved[1]} loaders combined by {saved[0]!r}, and there are "
                    f"{now[1]} combined by {now[0]!r}",
                    why="the batches would be other ones",
                    fix="combine the loaders as the run that wrote it did, or begin the epoch's data anew with "
                    "restore.data='restart'",
                )
            )
        self._restored = state
        for part, each in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(each)

    def close(self) -> None:
        """Close all parts."""
        for part in self._parts:
            part.source.close()
