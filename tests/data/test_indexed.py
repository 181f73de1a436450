"""A plain `DataLoader` over a map-style data set goes on at any batch as if it had not been stopped."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from data import samplers
from data.resuming import Noisy, Seen, listed, saved, seed, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from taskloom.core.errors import CheckpointError
from taskloom.data import SeedableRandomSampler
from taskloom.data.generators import Generators
from taskloom.data.sources import source_of

Options = dict[str, Any]

# Torch warns of more workers than there are cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

plain = partial(DataLoader, collate_fn=listed)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


LOADERS: dict[str, Callable[..., Any]] = {
    "in order": lambda **more: plain(Noisy(), 2, **more),
    "shuffle": lambda **more: plain(Noisy(), 2, shuffle=True, **more),
    "short last batch": lambda **more: plain(Noisy(13), 2, shuffle=True, **more),
    "drop_last": lambda **more: plain(Noisy(13), 2, shuffle=True, drop_last=True, **more),
    "own generator": lambda **more: plain(Noisy(own=True), 2, shuffle=True, generator=generator(), **more),
    "no batches": lambda **more: DataLoader(Noisy(6), batch_size=None, shuffle=True, **more),
    "replacement": lambda **more: plain(Noisy(), 2, sampler=RandomSampler(range(14), True, 40), **more),
    "subset": lambda **more: plain(Noisy(), 2, sampler=SubsetRandomSampler([3, 5, 7, 9, 11]), **more),
    "weighted": lambda **more: plain(Noisy(), 2, sampler=WeightedRandomSampler([1.0, 2.0] * 7, 14), **more),
    "distributed": lambda **more: plain(Noisy(), 2, sampler=DistributedSampler(range(14), 2, 1), **more),
    "at once": lambda **more: plain(Noisy(), 2, sampler=samplers.ShufflingAtOnce(), **more),
    "as it goes": lambda **more: plain(Noisy(), 2, sampler=samplers.DrawingAsItGoes(), **more),
    "as it goes, generator": lambda **more: plain(
        Noisy(), 2, sampler=samplers.DrawingAsItGoes(), generator=generator(), **more
    ),
    "with NumPy": lambda **more: plain(Noisy(), 2, sampler=samplers.DrawingWithNumPy(), **more),
    "long": lambda **more: plain(Noisy(), 1, sampler=samplers.DrawingAsItGoes(), **more),
    "generators": lambda **more: plain(Noisy(), 2, sampler=samplers.WithGenerators(), **more),
    "in place": lambda **more: plain(Noisy(), 2, sampler=samplers.ShufflingInPlace(), **more),
    "by epoch": lambda **more: plain(Noisy(), 2, sampler=samplers.ByEpoch(), **more),
    "seedable": lambda **more: plain(Noisy(), 2, sampler=SeedableRandomSampler(range(14), 3), **more),
    "counting": lambda **more: plain(Noisy(), 2, sampler=samplers.Counting(), **more),
    "batch sampler": lambda **more: plain(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(range(14)), 4, False), **more
    ),
    "own batch sampler": lambda **more: plain(Noisy(), batch_sampler=samplers.Batches(), **more),
    "without length": lambda **more: plain(Noisy(), 2, sampler=samplers.WithoutLength(), **more),
}
WHOLE: dict[str, Seen] = {}


def whole(kind: str, **more: Any) -> Seen:
    """An uninterrupted run, remembered."""
    name = f"{kind} {more}"
    if name not in WHOLE:
        WHOLE[name] = train(partial(LOADERS[kind], **more))
    return WHOLE[name]


@pytest.mark.holds("R3", "R13", "DA-30")
@pytest.mark.parametrize("kind", LOADERS)
def test_every_stop_in_two_epochs(kind: str) -> None:
    expected = whole(kind)
    assert len(expected) == 2 * len({done for _, done, *_ in expected})
    for stop in range(1, len(expected)):
        assert train(LOADERS[kind], [stop]) == expected, stop
    for ended in ("read", "batch"):
        assert train(LOADERS[kind], [len(expected) // 2], ended=ended) == expected, ended


@pytest.mark.holds("R3")
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_up_to_three_kills(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([name for name in LOADERS if name != "without length"]))
    limit = data.draw(st.sampled_from([None, 2, 3]))
    epochs = data.draw(st.integers(1, 3))
    expected = train(LOADERS[kind], epochs=epochs, limit=limit)
    stops = data.draw(st.sets(st.integers(1, max(1, len(expected) - 1)), max_size=3))
    ended = data.draw(st.sampled_from(["between", "read", "batch"]))
    assert train(LOADERS[kind], sorted(stops), epochs=epochs, limit=limit, ended=ended) == expected


WORKERS: dict[str, tuple[str, Options]] = {
    "two": ("shuffle", {"num_workers": 2}),
    "own generator": ("own generator", {"num_workers": 2, "prefetch_factor": 3}),
    "four that persist": ("shuffle", {"num_workers": 4, "persistent_workers": True, "prefetch_factor": 1}),
    "at once": ("at once", {"num_workers": 1}),
    "at once, persistent": ("at once", {"num_workers": 1, "persistent_workers": True}),
    "as it goes": ("as it goes, generator", {"num_workers": 2, "persistent_workers": True}),
    "long": ("long", {"num_workers": 2}),
    "in place, persistent": ("in place", {"num_workers": 1, "persistent_workers": True}),
    "counting": ("counting", {"num_workers": 1}),
    "own batch sampler": ("own batch sampler", {"num_workers": 2}),
    "no batches": ("no batches", {"num_workers": 2}),
    "without length": ("without length", {"num_workers": 1}),
}


@pytest.mark.holds("R3", "R13", "DA-30")
@pytest.mark.parametrize("name", WORKERS)
def test_worker_processes_draw_on_as_they_did(name: str) -> None:
    kind, more = WORKERS[name]
    expected = whole(kind, **more)
    half, last = len(expected) // 2, len(expected) - 1
    make = partial(LOADERS[kind], **more)
    assert train(make, [1, half - 1, half + 2]) == expected
    assert train(make, [half, last]) == expected
    drawn = [
        value
        for _, _, batch, *_ in expected
        for row in (batch if kind != "no batches" else [batch])
        for value in row[1:]
    ]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.holds("R3")
@pytest.mark.parametrize("ended", ["between", "read", "batch"])
def test_every_stop_with_workers_that_persist(ended: str) -> None:
    more = {"num_workers": 1, "persistent_workers": True}
    make = partial(plain, Noisy(6), 2, shuffle=True, **more)
    expected = train(make, epochs=3)
    for stop in range(1, 9) if ended == "between" else (3, 6):
        assert train(make, [stop], epochs=3, ended=ended) == expected, stop


@pytest.mark.holds("R3", "R36")
def test_what_workers_draw_does_not_depend_on_how_many_there_are_or_how_they_start() -> None:
    expected = whole("own generator", num_workers=2, prefetch_factor=3)
    for more in ({"num_workers": 1}, {"num_workers": 4, "prefetch_factor": 1}):
        assert whole("own generator", **more) == expected
    spawned = partial(LOADERS["own generator"], num_workers=1, multiprocessing_context="spawn", persistent_workers=True)
    forked = partial(LOADERS["own generator"], num_workers=2, multiprocessing_context="fork")
    assert train(forked, [9], later=spawned) == expected


@pytest.mark.holds("R3")
@pytest.mark.parametrize("kind", ["shuffle", "as it goes"])
def test_batches_that_come_out_of_order_come_once(kind: str) -> None:
    make = partial(LOADERS[kind], num_workers=2, in_order=False, prefetch_factor=4)
    for stops in ([], [3], [2, 5, 9]):
        seen = train(make, stops, ended="between")
        for epoch in (0, 1):
            indices = [row[0] for number, _, batch, *_ in seen if number == epoch for row in batch]
            assert sorted(indices) == list(range(14))


class Late(Dataset):
    """The second batch comes last."""

    def __init__(self, gate: Any) -> None:
        self.gate = gate

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        if index == 1:
            assert self.gate.wait(20)
        return index


@pytest.mark.holds("R3")
def test_a_batch_that_was_late_is_not_lost() -> None:
    gate = torch.multiprocessing.get_context("fork").Event()
    make = partial(DataLoader, Late(gate), 1, collate_fn=listed, num_workers=2, in_order=False, prefetch_factor=1)
    source = source_of(make(), Generators())
    source.begin_epoch(0, resumed=False)
    batches = source.batches(0)
    first = [next(batches) for _ in range(2)]
    assert first == [[0], [2]]
    state = saved(source.state_dict(0, 2))
    assert (state["missing"], state["reached"]) == ([1], 3)
    gate.set()
    del batches
    for later in (make(), make(in_order=True), make(num_workers=0, in_order=True, prefetch_factor=None)):
        source = source_of(later, Generators())
        source.load_state_dict(state)
        source.begin_epoch(0, resumed=True)
        rest = [index for (index,) in source.batches(2)]
        assert sorted(rest) == [1, 3, 4, 5]
        if later.in_order:
            assert rest == [1, 3, 4, 5]
            again = saved(source.state_dict(0, 4))
            assert (again["missing"], again["reached"]) == ([], 4)
            assert source.state_dict(0, 2)["missing"] == [1]


class Many(Noisy):
    """Is asked for a batch at once."""

    def __getitems__(self, indices: Any) -> Any:
        assert type(indices) is list
        return [super(Many, self).__getitem__(index) for index in indices]


@pytest.mark.holds("R3")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_that_is_asked_for_batches_gets_lists(workers: int) -> None:
    make = partial(plain, Many(), 4, shuffle=True, num_workers=workers)
    assert train(make, [2, 6]) == train(make)


@pytest.mark.holds("R3")
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 2)])
def test_the_number_of_workers_may_change_within_an_epoch(before: int, after: int) -> None:
    def order(stops: list[int], later: int) -> list[float]:
        make, then = (partial(LOADERS["as it goes"], num_workers=number) for number in (before, later))
        return [row[0] for _, _, batch, *_ in train(make, stops, epochs=1, later=then) for row in batch]

    assert order([3], after) == order([], before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["shuffle", "own generator", "no batches", "weighted", "at once", "batch sampler"])
def test_the_order_and_the_draws_of_the_training_are_those_of_a_bare_loop(kind: str, workers: int) -> None:
    make = partial(LOADERS[kind], num_workers=workers)
    seen = whole(kind, num_workers=workers)
    seed(1)
    loader, bare = make(), []
    for _ in range(2):
        for batch in loader:
            indices = [row[0] for row in batch] if kind != "no batches" else batch[0]
            bare.append((indices, random.random(), np.random.rand(), torch.rand(()).item()))
    indexed = [[row[0] for row in batch] if kind != "no batches" else batch[0] for _, _, batch, *_ in seen]
    assert [(order, *each[3:]) for order, each in zip(indexed, seen, strict=True)] == bare


@pytest.mark.holds("R25", "DA-30")
@pytest.mark.parametrize("workers", [0, 1])
def test_no_skipped_sample_is_read_or_collated(workers: int) -> None:
    collated: list[Any] = []

    def collate(samples: Any) -> Any:
        collated.append(samples)
        return samples

    data = Noisy()
    loader = DataLoader(data, 2, shuffle=True, collate_fn=collate)
    source = source_of(loader, Generators())
    source.begin_epoch(0, resumed=False)
    list(islice(source.batches(0), 5))
    state = saved(source.state_dict(0, 5))
    data, loader = Noisy(), DataLoader(Noisy(), 2, shuffle=True, collate_fn=collate, num_workers=workers)
    collated.clear()
    source = source_of(loader, Generators())
    source.load_state_dict(state)
    source.begin_epoch(0, resumed=True)
    rest = list(source.batches(5))
    assert len(rest) == 2
    assert loader.dataset.reads == (0 if workers else 4)
    assert len(collated) == (0 if workers else 2)


class Huge(Dataset):
    def __len__(self) -> int:
        return 4_000_016

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.holds("R25", "DA-30")
def test_a_position_at_step_a_million_is_small_and_passes_over_indices_alone() -> None:
    steps = 1_000_000

    def source() -> Any:
        return source_of(DataLoader(Huge(), 4, shuffle=True, collate_fn=listed), Generators())

    seed(1)
    straight = source()
    straight.begin_epoch(0, resumed=False)
    order = iter(straight.batches(0))
    next(order)
    state = straight.state_dict(0, steps)
    assert len(repr(saved(state))) < 40_000
    torch.rand(3)
    later = source()
    later.load_state_dict(saved(state))
    later.begin_epoch(0, resumed=True)
    rest = [index for batch in later.batches(steps) for index in batch]
    seed(1)
    torch.empty((), dtype=torch.int64).random_()  # what a DataLoader draws for its workers
    assert rest == list(RandomSampler(Huge()))[-16:]


@pytest.mark.holds("R3")
def test_a_sampler_whose_order_comes_from_elsewhere_is_refused() -> None:
    make = partial(plain, Noisy(), 2, sampler=samplers.FromOutside())
    with pytest.raises(CheckpointError, match=r"BatchSampler does not yield the indices again.*restore.data='restart'"):
        train(make, [3])


@pytest.mark.holds("R3")
def test_a_large_order_that_is_shuffled_in_place_is_refused_and_not_kept() -> None:
    def make() -> Any:
        return plain(range(20_000), 5_000, sampler=samplers.ShufflingInPlace(20_000))

    expected = train(make)
    assert train(make, [2]) == expected  # in the first epoch it is as it was made
    with pytest.raises(
        CheckpointError, match=r"sampler\.order is not what it was.*too large.*let __iter__ work on a copy"
    ):
        train(make, [5])


@pytest.mark.holds("R3")
@pytest.mark.parametrize(
    ("later", "text"),
    [
        (
            lambda: plain(Noisy(), 3, shuffle=True),
            r"batches was 7, batch_size was 2. Got: {'batches': 5, 'batch_size': 3}",
        ),
        (lambda: plain(Noisy(16), 2, shuffle=True), r"batches was 7. Got: {'batches': 8}"),
        (lambda: plain(Noisy(), 2), r"sampler was \['BatchSampler', 'RandomSampler'\]"),
    ],
)
def test_another_loader_is_refused_within_an_epoch_and_taken_between_two(later: Any, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        train(LOADERS["shuffle"], [3], later=later)
    assert [epoch for epoch, *_ in train(LOADERS["shuffle"], [7], later=later)][-1] == 1


@pytest.mark.holds("R13")
def test_a_generator_that_is_gone_is_named() -> None:
    def later() -> Any:
        return plain(Noisy(), 2, shuffle=True, generator=generator())

    with pytest.raises(CheckpointError, match=r"random generator dataset\.rng, which the training data lack"):
        train(LOADERS["own generator"], [3], later=later)


def test_the_users_loader_is_left_as_it_was() -> None:
    loader = plain(Noisy(), 2, shuffle=True, num_workers=1, persistent_workers=True)
    before = dict(vars(loader))
    train(lambda: loader, [3])
    assert vars(loader) == before
