"""Resharding: whatever the pieces were at the save, whatever they are at the load."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskloom.checkpoint import CheckpointContent, CheckpointError, Region, Shard, open_checkpoint, write_checkpoint
from taskloom.checkpoint.planning import blocks_of, read_shards

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


def cuts(draw: Callable, size: int) -> list[int]:
    """Bounds of consecutive ranges of 0..size, empty ones among them."""
    inner = draw(st.lists(st.integers(0, size), max_size=3))
    return [0, *sorted(inner), size]


@st.composite
def splits(draw: Callable, tensor: torch.Tensor) -> list[Shard]:
    """The tensor as pieces: flat ranges, or blocks of a grid; in any order."""
    shape = tuple(tensor.shape)
    if draw(st.booleans()):
        bounds = cuts(draw, tensor.numel())
        pieces = [
            Shard.flat_range("w", tensor.reshape(-1)[start:stop].clone(), shape, start)
            for start, stop in pairwise(bounds)
        ]
    else:
        pieces = [Shard.whole("w", tensor.clone())]
        for dimension, size in enumerate(shape):
            bounds = cuts(draw, size)
            pieces = [
                Shard("w", part.clone(), shape, (*piece.offset[:dimension], start, *piece.offset[dimension + 1 :]))
                for piece in pieces
                for start, stop in pairwise(bounds)
                for part in [piece.tensor.narrow(dimension, start, stop - start)]
            ]
    return draw(st.permutations(pieces))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_range_is_made_of_blocks_in_order(data):
    shape = data.draw(shapes)
    tensor = torch.arange(math.prod(shape)).reshape(shape)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, tensor.numel())] * 2)))
    blocks = blocks_of(Region(shape, (start,), (stop - start,), flat=True))
    flat = tensor.reshape(-1)[start:stop]
    seen = []
    for block in blocks:
        index = tuple(slice(o, o + s) for o, s in zip(block.offset, block.shape, strict=True))
        assert torch.equal(tensor[index], block.of(flat, flat=True))
        seen += tensor[index].reshape(-1).tolist()
    assert seen == flat.tolist()
    assert len(blocks) <= max(1, 2 * len(shape))


@pytest.mark.holds("CK-06")
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_split_is_read_into_any_other(tmp_path_factory, data):
    """What one strategy at one world size wrote fills what another holds, and only that."""
    shape = data.draw(shapes)
    tensor = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    written, wanted = data.draw(splits(tensor)), data.draw(splits(tensor))
    folder = tmp_path_factory.mktemp("any") / "step-1"
    write_checkpoint(folder, CheckpointContent(model=written), fsync=False)
    targets = [Shard(s.name, torch.full_like(s.tensor, -1), s.global_shape, s.offset, s.flat) for s in wanted]
    with open_checkpoint(folder) as reader:
        read_shards(reader, "model", targets)
        assert torch.equal(reader.tensor("model", "w"), tensor)
    for target, expected in zip(targets, wanted, strict=True):
        assert torch.equal(target.tensor, expected.tensor)


def saved(tmp_path, tensor):
    folder = tmp_path / "step-1"
    write_checkpoint(folder, CheckpointContent(model=[Shard.whole("net.w", tensor)]), fsync=False)
    return open_checkpoint(folder)


def test_only_the_overlapping_part_is_read(tmp_path, monkeypatch):
    reader = saved(tmp_path, torch.arange(1000.0).reshape(100, 10))
    read = []
    part = type(reader).part
    monkeypatch.setattr(type(reader), "part", lambda *arguments: read.append(part(*arguments)) or read[-1])
    target = Shard("net.w", torch.zeros(2, 3), (100, 10), (40, 5))
    read_shards(reader, "model", [target])
    assert target.tensor.tolist() == [[405, 406, 407], [415, 416, 417]]
    assert sum(each.numel() for each in read) == 6


def test_values_become_what_the_target_holds(tmp_path):
    reader = saved(tmp_path, torch.tensor([1.5, 2.5]))
    target = Shard.whole("net.w", torch.zeros(2, dtype=torch.float64))
    read_shards(reader, "model", [target])
    assert target.tensor.tolist() == [1.5, 2.5]


def test_a_tensor_of_another_name_or_shape_is_told(tmp_path):
    reader = saved(tmp_path, torch.zeros(4))
    with pytest.raises(CheckpointError, match=r"no model tensor 'net.v'.*net\.w"):
        read_shards(reader, "model", [Shard.whole("net.v", torch.zeros(4))])
    with pytest.raises(CheckpointError, match=r"'net.w' in the shape \(4,\), not \(5,\).*as it was when it was saved"):
        read_shards(reader, "model", [Shard.whole("net.w", torch.zeros(5))])
