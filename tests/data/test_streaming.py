"""Streams go on at any batch as if they had not been left: samples, order, augmentations, and whose worker they are."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from data.resuming import saved
from data.streams import Batches, Buffered, Placed, Remembering, noise, stream, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from taskloom.core.errors import CheckpointError
from taskloom.data.generators import Generators
from taskloom.data.rereading import Rereading
from taskloom.data.sources import source_of

LOADERS: dict[str, Callable[[], Any]] = {
    "no state": lambda: stream(Buffered()),
    "state": lambda: stream(Placed()),
    "no state, 1 worker": lambda: stream(Buffered(), 1),
    "no state, 2 workers": lambda: stream(Buffered(), 2),
    "no state, 2 workers that persist": lambda: stream(Buffered(), 2, persistent_workers=True),
    "state, 1 worker": lambda: stream(Placed(), 1),
    "state, 2 workers": lambda: stream(Placed(), 2),
    "state, 2 workers that persist": lambda: stream(Placed(), 2, persistent_workers=True),
    "state, 2 workers, whole batches": lambda: stream(Placed(), 2, drop_last=True, prefetch_factor=4),
    "samples": lambda: DataLoader(Placed(5), batch_size=None, num_workers=2, persistent_workers=True),
    "an iterable": Batches,
    "a loader with a state": Remembering,
}
IN_THIS_PROCESS = ["no state", "state", "an iterable", "a loader with a state"]


@pytest.mark.holds("R3", "R13", "DA-30")
@pytest.mark.parametrize("name", LOADERS)
def test_every_stop_in_two_epochs(name: str) -> None:
    make = LOADERS[name]
    whole = train(make)
    few = name not in IN_THIS_PROCESS
    for stop in range(1, len(whole), 4 if few else 1):
        assert train(make, [stop]) == whole, stop


@pytest.mark.holds("R3")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(sorted(LOADERS)), limit=st.sampled_from([None, None, 3]))
def test_up_to_three_kills_in_three_epochs(data: Any, name: str, limit: int | None) -> None:
    train_it = partial(train, LOADERS[name], epochs=3, limit=limit)
    whole = train_it()
    steps = st.integers(1, len(whole) - 1)
    stops = data.draw(st.lists(steps, min_size=1, max_size=3, unique=True).map(sorted))
    assert train_it(stops) == whole


@pytest.mark.holds("R3", "DA-30")
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workers=st.sampled_from([3, 4]), ends=st.lists(st.integers(0, 9), min_size=4, max_size=4), data=st.data())
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_that_come_to_their_ends_one_after_the_other(workers: int, ends: list[int], data: Any) -> None:
    make = partial(stream, Uneven([each + (number == 1) for number, each in enumerate(ends)]), workers)
    whole = train(make, epochs=1)
    stops = data.draw(st.lists(st.integers(1, len(whole)), max_size=2, unique=True).map(sorted))
    assert train(make, stops, epochs=1) == whole


class Uneven(IterableDataset):
    """Gives each worker its own number of samples."""

    def __init__(self, ends: list[int]) -> None:
        self.ends, self.at = ends, 0

    def __iter__(self) -> Any:
        worker = get_worker_info().id
        while self.at < self.ends[worker]:
            self.at += 1
            yield [10.0 * worker + self.at, *noise()]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


@pytest.mark.holds("R25")
def test_a_data_set_with_a_state_reads_no_skipped_sample() -> None:
    made: list[Placed] = []

    def make() -> Any:
        made.append(Placed(1000))
        return stream(made[-1])

    whole = train(make, epochs=1)
    assert train(make, [490], epochs=1) == whole
    assert made[0].reads == 1000
    assert made[-1].reads == 20


@pytest.mark.holds("R25")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_read_again_is_not_collated(workers: int) -> None:
    def make(counted: bool) -> Any:
        loader = stream(Buffered(), workers)
        loader.collate_fn = Refusing(counted)
        return loader

    source = source_of(make(False), Generators())
    source.begin_epoch(0, resumed=False)
    batches = source.batches(0)
    first = [next(batches) for _ in range(5)]
    state = saved(source.state_dict(0, 4))
    source.close()
    after = source_of(make(True), Generators())
    after.load_state_dict(state)
    after.begin_epoch(0, resumed=True)
    again = after.batches(4)
    assert next(again) == first[4]  # Refusing would have raised for any of the four before
    after.close()


class Refusing:
    """A collate function that refuses batches that have been trained on, told by how many it was asked for before."""

    def __init__(self, refuses: bool) -> None:
        self.refuses, self.calls = refuses, 0

    def __call__(self, samples: list[Any]) -> list[Any]:
        worker = get_worker_info()
        self.calls += 1
        if self.refuses and self.calls > (5 if worker is None else 3):
            raise RuntimeError("a batch that is skipped was collated")
        return samples


@pytest.mark.holds("R25")
def test_reading_again_tells_how_far_it_is() -> None:
    told: list[tuple[int, int, float]] = []
    times = iter([0.0, 1.0, 2.0, 3.0, 13.0, 14.0])
    rereading = Rereading(100, lambda *each: told.append(each), clock=lambda: next(times))
    for count in (10, 20, 30, 50, 60):
        rereading.read(count)
    assert told == [(20, 100, pytest.approx(8.0)), (50, 100, pytest.approx(13.0))]


@pytest.mark.holds("R36")
def test_workers_draw_apart_in_every_batch_and_epoch() -> None:
    seen = train(lambda: stream(Buffered(40), 2))
    drawn = [sample[kind] for _, _, batch, _ in seen for sample in batch[:-1] for kind in (1, 2, 3)]
    assert len(set(drawn)) == len(drawn) >= 150


def test_a_stream_leaves_the_random_numbers_of_the_training_alone() -> None:
    drawing = [step for *_, step in train(lambda: stream(Buffered(12)), epochs=1)]
    quiet = [step for *_, step in train(lambda: stream(Quiet(12)), epochs=1)]
    assert drawing == quiet[: len(drawing)]


class Quiet(Buffered):
    """Draws nothing."""

    def __iter__(self) -> Any:
        return iter([[float(index)] for index in range(self.length)])


class Numbered(IterableDataset):
    """Says which epoch it was told, which its workers have copies of."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter([[float(self.epoch)]] * 4)


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_the_data_set_is_told_the_number_of_the_epoch_in_its_workers_too(workers: int, persistent: bool) -> None:
    make = partial(lambda: stream(Numbered(), workers, persistent_workers=persistent))
    seen = train(make, epochs=3)
    assert all(sample == [number] for number, _, batch, _ in seen for sample in batch[:-1])


def test_an_order_that_is_drawn_when_workers_begin_another_epoch() -> None:
    make = partial(lambda: stream(Shuffled(), 2, persistent_workers=True))
    whole = train(make, epochs=3)
    for stop in (5, 9):
        assert train(make, [stop], epochs=3) == whole


class Shuffled(IterableDataset):
    """No state; draws its order before its first sample is asked for."""

    def __iter__(self) -> Any:
        order = [[float(index)] for index in range(8)]
        random.shuffle(order)
        return iter(order)


@pytest.mark.holds("R3")
class TestWhatCannotGoOn:
    def taken_up(self, first: Any, other: Any, done: int = 2) -> None:
        source = source_of(first, Generators())
        source.begin_epoch(0, resumed=False)
        batches = source.batches(0)
        for _ in range(done):
            next(batches)
        state = saved(source.state_dict(0, done))
        source.close()
        after = source_of(other, Generators())
        after.load_state_dict(state)
        after.begin_epoch(0, resumed=True)
        next(after.batches(done), None)

    def test_an_iterator(self) -> None:
        with pytest.raises(CheckpointError, match=r"generator.*gives each batch once.*restore.data='restart'"):
            self.taken_up(iter(Batches()), iter(Batches()))

    def test_shorter_data(self) -> None:
        with pytest.raises(CheckpointError, match=r"end after 3 batches.*after 5"):
            self.taken_up(Batches(7), Batches(3), done=5)

    def test_another_number_of_workers(self) -> None:
        with pytest.raises(CheckpointError, match="that 2 workers read, and the loader has num_workers=1"):
            self.taken_up(stream(Placed(), 2), stream(Placed(), 1))

    def test_another_kind_of_loader(self) -> None:
        with pytest.raises(CheckpointError, match=r"position in a loader or data set with a state.*are an iterable"):
            self.taken_up(Remembering(), Batches())

    def test_batches_as_they_come(self) -> None:
        make = partial(stream, Buffered(), 2, in_order=False)
        with pytest.raises(CheckpointError, match=r"in_order=False.*state_dict"):
            self.taken_up(make(), make())


@pytest.mark.holds("R3")
def test_batches_as_they_come_are_all_trained_on_once_where_the_data_set_has_a_state() -> None:
    seen = train(partial(lambda: stream(Placed(), 2, in_order=False)), [4], epochs=1)
    indices = sorted(sample[0] for _, _, batch, _ in seen for sample in batch[:-1])
    assert indices == sorted([*range(0, 10, 2), *range(1, 21, 2)])


def test_a_list_is_taken_up_without_reading() -> None:
    source = source_of([torch.zeros(1), torch.ones(1)], Generators())
    source.begin_epoch(0, resumed=True)
    source.load_state_dict(source.state_dict(0, 1))
    assert [batch.item() for batch in source.batches(1)] == [1.0]
