"""Several loaders in one: the modes of Lightning's CombinedLoader, and each part taken up from its own position."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from data.resuming import Noisy, listed, saved
from data.streams import Batches, Buffered, Placed, Remembering, stream, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from taskloom import CombinedLoader
from taskloom.core.errors import CheckpointError
from taskloom.data.generators import Generators
from taskloom.data.loaders import feed, named_loaders
from taskloom.data.sources import source_of

MODES = ["min_size", "max_size", "max_size_cycle", "sequential"]


class Loader:
    """An iterable of numbers, with a length only where that is asked for."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __iter__(self) -> Any:
        return iter(self.numbers)


class Sized(Loader):
    def __len__(self) -> int:
        return len(self.numbers)


@pytest.mark.holds("DA-07")
@pytest.mark.parametrize(
    ("mode", "length", "batches"),
    [
        ("min_size", 2, [[1, 4], [2, 5]]),
        ("max_size", 3, [[1, 4], [2, 5], [3, None]]),
        ("max_size_cycle", 3, [[1, 4], [2, 5], [3, 4]]),
        ("sequential", 5, [1, 2, 3, 4, 5]),
    ],
)
def test_the_modes(mode: str, length: int, batches: list[Any]) -> None:
    combined = CombinedLoader([Sized(1, 2, 3), Sized(4, 5)], mode)
    assert len(combined) == length
    assert [batch for batch, _, _ in combined] == batches == list(combined.batches())
    unsized = CombinedLoader([Loader(1, 2, 3), Loader(4, 5)], mode)
    assert list(unsized.batches()) == batches
    with pytest.raises(TypeError, match=f"length of CombinedLoader.*{mode}.*is unknown.*max_steps"):
        len(unsized)
    source = source_of(unsized, Generators())
    source.begin_epoch(0, resumed=False)
    assert list(source.batches(0)) == batches


@pytest.mark.holds("DA-07")
def test_iterating_numbers_batches_and_loaders() -> None:
    by_name = {"a": Sized(1, 2), "b": Sized(3, 4)}
    assert list(CombinedLoader(by_name)) == [({"a": 1, "b": 3}, 0, 0), ({"a": 2, "b": 4}, 1, 0)]
    assert list(CombinedLoader(by_name, "sequential")) == [(1, 0, 0), (2, 1, 0), (3, 0, 1), (4, 1, 1)]
    nested = CombinedLoader([Sized(5, 6), CombinedLoader(by_name)])
    assert next(iter(nested)) == ([5, {"a": 1, "b": 3}], 0, 0)
    assert nested.flattened[0] is nested.iterables[0]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: CombinedLoader([Sized(1)], "min"), ValueError, r"no such mode.*min_size, max_size, max_size_cycle"),
        (lambda: CombinedLoader([]), ValueError, r"given no loader"),
        (lambda: CombinedLoader(Sized(1)), TypeError, r"takes a list or a dict of loaders"),
        (lambda: CombinedLoader({"a": {"b": Sized(1)}}), TypeError, r"'a' is none.*collections within collections"),
        (lambda: CombinedLoader([[1, 2]]), TypeError, r"0 is none.*collections within"),
        (lambda: CombinedLoader([torch.ones(2)]), TypeError, r"0 is none"),
        (lambda: CombinedLoader({"a": 3}), TypeError, r"'a' is none.*cannot be iterated over"),
        (lambda: named_loaders([Sized(1), Sized()], None, "train"), ValueError, r"train loader is empty"),
        (lambda: named_loaders(CombinedLoader({"x": Sized()}), None, "train"), ValueError, r"loader 'x' is empty"),
        (
            lambda: list(CombinedLoader([Loader(1, 2), iter([3])], "max_size_cycle")),
            ValueError,
            r"Loader 1 of .* yielded no batch when it was begun again",
        ),
    ],
)
def test_what_cannot_be_combined(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


@pytest.mark.holds("DA-07")
def test_training_loaders_are_combined_and_others_run_one_after_the_other() -> None:
    (train_loader,) = named_loaders({"x": Sized(1, 2), "y": Sized(3)}, None, "train")
    assert (train_loader.length, train_loader.exact) == (2, True)
    assert list(feed(train_loader.loader, 2, None)) == [{"x": 1, "y": 3}, {"x": 2, "y": 3}]
    one_by_one = CombinedLoader({"x": Sized(1, 2), "y": Sized(3)}, "sequential")
    assert [each.name for each in named_loaders(one_by_one, None, "validate")] == ["x", "y"]
    (in_step,) = named_loaders(CombinedLoader([Sized(1, 2), Loader(3)]), None, "validate")
    assert (in_step.length, in_step.exact) == (2, False)
    assert list(feed(in_step.loader, 1, None)) == [[1, 3]]


def shuffled(length: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(length), 2, shuffle=True, collate_fn=listed, **options)


PARTS: dict[str, Callable[[int], Any]] = {
    "map-style": shuffled,
    "stream": lambda length: stream(Buffered(length)),
    "stream with a state": lambda length: stream(Placed(length)),
    "iterable": Batches,
    "loader with a state": Remembering,
}


@pytest.mark.holds("R3", "DA-07", "DA-30")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    mode=st.sampled_from(MODES),
    parts=st.lists(st.tuples(st.sampled_from(sorted(PARTS)), st.integers(1, 9)), min_size=1, max_size=3),
    limit=st.sampled_from([None, None, 2]),
    data=st.data(),
)
def test_every_part_goes_on_from_its_own_position(mode: str, parts: Any, limit: int | None, data: Any) -> None:
    def make() -> CombinedLoader:
        return CombinedLoader({str(key): PARTS[kind](length) for key, (kind, length) in enumerate(parts)}, mode)

    train_it = partial(train, make, epochs=3, limit=limit)
    whole = train_it()
    stops = data.draw(st.lists(st.integers(1, len(whole)), min_size=1, max_size=3, unique=True).map(sorted))
    assert train_it(stops) == whole


@pytest.mark.holds("R3", "DA-07")
def test_parts_with_workers() -> None:
    def make() -> CombinedLoader:
        return CombinedLoader([shuffled(4, num_workers=1), stream(Placed(9), 1)], "max_size_cycle")

    whole = train(make)
    for stop in (2, 4, 7):
        assert train(make, [stop]) == whole


@pytest.mark.parametrize("other", [["a"], ["a", "b", "c"]])
def test_another_combination_is_refused(other: list[str]) -> None:
    state = saved(source_of(CombinedLoader([Batches(), Batches()]), Generators()).state_dict(0, 0))
    with pytest.raises(CheckpointError, match=r"position in 2 loaders combined by 'min_size', and there are"):
        source_of(CombinedLoader({name: Batches() for name in other}), Generators()).load_state_dict(state)


def test_cycling_keeps_no_more_than_a_few_states() -> None:
    source: Any = source_of(CombinedLoader([Batches(1), Batches(200)], "max_size_cycle"), Generators())
    source.begin_epoch(0, resumed=False)
    assert len(list(source.batches(0))) == 200
    assert all(len(part._left) < 12 for part in source._parts)
