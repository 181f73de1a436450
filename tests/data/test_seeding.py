"""Random numbers of data: no two batches draw the same, and what they draw does not depend on who makes them."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from data.resuming import Noisy, listed, seed
from torch.utils.data import DataLoader, Dataset, IterableDataset

from taskloom import seed_everything
from taskloom.data import ReproducibleDataset, SeedableRandomSampler, seed_worker
from taskloom.data.generators import Generators, own_generators, own_states
from taskloom.data.indices import IndexStream
from taskloom.data.seeding import SeededIndices, batch_seed, seed_own, seed_process, stream_seed
from taskloom.data.sources import source_of

Draws = tuple[tuple[float, ...], ...]


def eight_of_each() -> Draws:
    """The first eight draws of every generator, one tuple per kind."""
    return (
        tuple(random.random() for _ in range(8)),
        tuple(np.random.rand(8).tolist()),
        tuple(torch.rand(8, dtype=torch.float64).tolist()),
        tuple(torch.randn(8, dtype=torch.float64).tolist()),
    )


@pytest.mark.holds("R36", "DA-36")
def test_a_thousand_batches_of_seeds_ranks_epochs_and_workers_draw_differently() -> None:
    drawn: list[Draws] = []
    loader = DataLoader(Noisy(), 2, shuffle=True, num_workers=2)
    for number, rank in product((0, 1, 2, 3, 2**32 - 1), range(5)):
        seed_everything(number)
        stream = IndexStream(loader, Generators(), SeededIndices)
        stream.part = rank
        for stream.epoch in range(8):
            stream.begin()
            for _, item in zip(range(5), iter(stream), strict=False):  # two workers take turns
                sent = pickle.dumps(item)
                with Generators().kept():
                    assert isinstance(pickle.loads(sent), list)
                    drawn.append(eight_of_each())
    assert len(drawn) == 1000
    assert len({draws for each in drawn for draws in each}) == 4000
    assert len({draws[0] for each in drawn for draws in each}) == 4000


@pytest.mark.holds("R36")
def test_seeds_that_only_add_up_alike_are_parted() -> None:
    assert stream_seed(1, 0) != stream_seed(0, 1)
    assert stream_seed((1, 2), 3) != stream_seed(1, (2, 3))
    assert stream_seed("12", "3") != stream_seed("1", "23")
    assert stream_seed(np.arange(4)) != stream_seed(np.arange(4).reshape(2, 2))
    assert stream_seed(torch.arange(3)) != stream_seed(torch.arange(3, dtype=torch.int32))
    assert stream_seed({"a": 1}) != stream_seed({"a": 2})


@pytest.mark.holds("R36")
def test_torch_sees_another_seed_for_every_batch_of_an_epoch() -> None:
    """Torch's generator on the CPU takes 32 bits of a seed, so random ones would meet after some ten thousands."""
    low = {batch_seed(12345, number) & 0xFFFFFFFF for number in range(100_000)}
    assert len(low) == 100_000


@pytest.mark.holds("R36")
@pytest.mark.parametrize(
    "make",
    [
        lambda: random.Random(0),
        lambda: np.random.RandomState(0),
        lambda: np.random.default_rng(0),
        lambda: np.random.Generator(np.random.Philox(0)),
        lambda: torch.Generator(),
    ],
)
def test_a_generator_of_the_users_is_seeded_as_a_whole(make: Callable[[], Any]) -> None:
    def state(number: int) -> str:
        generator = make()
        seed_own(generator, number)
        return repr(own_states({"": generator}))

    assert state(5) == state(5) != state(6)


class Deep:
    """Generators in many places, and things that are not to be searched."""

    def __init__(self) -> None:
        self.generator = torch.Generator()
        self.parts = [{"rng": np.random.default_rng(0)}, random.Random(0)]
        self.again = self.parts[1]
        self.itself = self
        self.samples = [random.Random(0) for _ in range(1000)]
        self.network = torch.nn.Linear(2, 2)
        self.system = random.SystemRandom()
        self.bound = self.method

    def method(self) -> None: ...


def test_generators_are_found_where_users_keep_them() -> None:
    found = own_generators({"data": Deep()})
    assert sorted(found) == ["data.generator", "data.parts[0]['rng']", "data.parts[1]"]


class Told(Noisy):
    """Says the epoch that it was told."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: Any) -> Any:
        return self.epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_is_told_the_epoch_in_workers_that_persist_too(workers: int) -> None:
    loader = DataLoader(Told(4), 1, num_workers=workers, persistent_workers=bool(workers), collate_fn=listed)
    source = source_of(loader, Generators())
    for epoch in (0, 1, 2):
        source.begin_epoch(epoch, resumed=False)
        assert list(source.batches(0)) == [[epoch]] * 4
    source.close()


@pytest.mark.holds("DA-36", "R36")
def test_workers_of_a_loop_of_ones_own_are_parted_by_rank() -> None:
    def draws(rank: int) -> list[Any]:
        seed_everything(3, workers=True)
        loader = DataLoader(
            Noisy(4, own=True), 1, num_workers=2, collate_fn=listed, worker_init_fn=partial(seed_worker, rank=rank)
        )
        return [value for _ in range(2) for ((_, *row),) in loader for value in row]

    first, second = draws(0), draws(1)
    assert first == draws(0)
    assert len({*first, *second}) == len(first) + len(second) == 64


class Asked(Dataset):
    """Tells apart what the sample itself draws and what it reads."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[float, ...]:
        return index, random.random(), np.random.rand(), torch.rand(()).item(), self.rng.random()


def samples(**options: Any) -> list[list[Any]]:
    """What a data set gives in two epochs, by sample."""
    random.seed(options.pop("seed", 0))
    loader = DataLoader(ReproducibleDataset(Asked(), seed=7), collate_fn=listed, **options)
    source = source_of(loader, Generators())
    epochs = []
    for epoch in (0, 1):
        source.begin_epoch(epoch, resumed=False)
        epochs.append(sorted(sample for batch in source.batches(0) for sample in batch))
    source.close()
    return epochs


@pytest.mark.holds("R36")
def test_samples_look_the_same_however_they_are_read() -> None:
    first, second = samples(batch_size=4)
    assert [index for index, *_ in first] == [index for index, *_ in second] == list(range(12))
    assert not {value for _, *row in first for value in row} & {value for _, *row in second for value in row}
    assert len({value for _, *row in first for value in row}) == 48
    for options in (
        {"batch_size": 3, "shuffle": True, "seed": 5},
        {"batch_size": 5, "num_workers": 1, "shuffle": True},
        {"batch_size": 1, "num_workers": 2, "persistent_workers": True},
    ):
        assert samples(**options) == [first, second]


@pytest.mark.holds("R36")
def test_reading_a_sample_leaves_the_generators_alone() -> None:
    data = ReproducibleDataset(Asked(), seed=1)
    seed(4)
    expected = eight_of_each(), data.dataset.rng.random()
    data.dataset.rng = np.random.default_rng(0)
    seed(4)
    data[3]
    assert (eight_of_each(), data.dataset.rng.random()) == expected
    assert data[3] != ReproducibleDataset(Asked(), seed=2)[3]
    assert len(data) == 12


def test_a_stream_has_no_reproducible_samples() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[int]:
            return iter(())

    with pytest.raises(TypeError, match=r"takes a map-style data set, one with __getitem__\. Got: .*no index"):
        ReproducibleDataset(Stream())


@pytest.mark.holds("DA-27")
def test_the_order_follows_from_a_seed_of_its_own() -> None:
    def orders(data_seed: int, general: int) -> list[list[int]]:
        seed(general)
        loader = DataLoader(range(20), 4, sampler=SeedableRandomSampler(range(20), data_seed), collate_fn=listed)
        source, found = source_of(loader, Generators()), []
        for epoch in (0, 1):
            source.begin_epoch(epoch, resumed=False)
            found.append([index for batch in source.batches(0) for index in batch])
            torch.rand(epoch + general)
        return found

    one = orders(7, 0)
    assert one == orders(7, 3)
    assert one[0] != one[1]
    assert all(sorted(order) == list(range(20)) for order in one)
    assert orders(8, 0) != one
    sampler = SeedableRandomSampler(range(20), 7)
    sampler.set_epoch(1)
    before = torch.get_rng_state()
    assert list(sampler) == list(sampler) == one[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(sampler) == 20
    with pytest.raises(ValueError, match=r"data_seed lies between 0 and \d+\. Got: -1"):
        SeedableRandomSampler(range(3), -1)


def test_seeding_a_process_leaves_devices_alone_and_parts_the_generators() -> None:
    seed_process(stream_seed("a"))
    drawn = eight_of_each()
    assert len({value for each in drawn for value in each}) == 32
    seed_process(stream_seed("a"))
    assert eight_of_each() == drawn
