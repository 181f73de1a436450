from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from taskloom.data import feed, named_loaders, suggested_num_workers
from taskloom.data.loaders import declared_batch_size, loader_length, with_last


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


class Sized(Stream):
    def __len__(self):
        return 5


def numbers(count: int = 5) -> DataLoader:
    return DataLoader(torch.arange(count), batch_size=1)


@pytest.mark.holds("DA-08")
@pytest.mark.parametrize(
    ("loader", "length", "exact"),
    [
        (numbers(), 5, True),
        (DataLoader(Stream(), batch_size=None), math.inf, False),
        # A stream's length is a promise that nobody checks, so the last batch is recognised by reading on.
        (DataLoader(Sized(), batch_size=None), 5, False),
        (map(str, [1]), math.inf, False),
    ],
)
def test_what_is_known_of_a_loaders_length(loader, length, exact):
    (named,) = named_loaders(loader, None, "train")
    assert named.loader is loader
    assert (named.length, named.exact) == (length, exact)
    assert loader_length(loader) == length


@pytest.mark.holds("DA-06")
def test_loaders_in_a_list_or_named_by_a_dict():
    one, other = numbers(), numbers()
    assert [(each.name, each.loader) for each in named_loaders({"a": one, "b": other}, None, "test")] == [
        ("a", one),
        ("b", other),
    ]
    assert [(each.name, each.loader) for each in named_loaders([one, other], None, "test")] == [("", one), ("", other)]


@pytest.mark.parametrize(
    ("loaders", "error", "text"),
    [
        (5, TypeError, "The train loader cannot be iterated over. Got: 5. Fix: pass a torch.utils.data.DataLoader"),
        ({"clean": None}, TypeError, "The train loader 'clean' cannot be iterated over. Got: None"),
        (numbers(0), ValueError, "The train loader is empty.*no batch to take a step on.*drop_last"),
        ({"a": numbers(), "b": numbers(0)}, ValueError, "The train loader 'b' is empty"),
    ],
)
def test_a_loader_that_cannot_be_used_is_named(loaders, error, text):
    with pytest.raises(error, match=text):
        named_loaders(loaders, None, "train")


@given(st.integers(1, 20), st.integers(0, 30))
def test_feeding_stops_at_the_limit_and_moves_every_batch(available, limit):
    length = min(limit, available)
    loader = numbers(available)
    assert [int(batch) for batch in feed(loader, length, None)] == list(range(length))
    assert list(feed(loader, length, lambda batch: 10 * int(batch))) == [10 * number for number in range(length)]


def test_a_limit_on_a_stream_reads_no_further():
    stream = iter(range(100))
    assert list(feed(stream, 3, None)) == [0, 1, 2]
    assert next(stream) == 3


@pytest.mark.holds("DA-08")
@given(st.lists(st.integers()))
def test_the_last_batch_is_told_by_reading_one_ahead(batches):
    paired = list(with_last(iter(batches)))
    assert [batch for batch, _ in paired] == batches
    assert [last for _, last in paired] == [False] * (len(batches) - 1) + [True] * bool(batches)


@pytest.mark.holds("DA-15")
@pytest.mark.parametrize(("cores", "processes", "workers"), [(8, 1, 8), (8, 3, 2), (2, 4, 1), (1, 0, 1)])
def test_workers_share_the_cores_between_processes(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert suggested_num_workers(processes) == workers


def test_only_a_map_style_loader_promises_how_many_samples_a_batch_holds():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from range(5)

    assert declared_batch_size(DataLoader(range(5), batch_size=2)) == 2
    assert declared_batch_size(DataLoader(range(5), batch_sampler=[[0, 1], [2]])) is None
    assert declared_batch_size(DataLoader(Stream(), batch_size=2)) is None
    assert declared_batch_size([torch.zeros(2)]) is None
