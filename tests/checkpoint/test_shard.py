from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskloom.checkpoint import CheckpointError, Region, Shard, find_aliases
from taskloom.checkpoint.shard import coverage_problem, region_from_json, region_to_json, without_aliases


def test_whole_tensor_starts_at_zero_in_every_dimension():
    shard = Shard.whole("w", torch.zeros(2, 3))
    assert (shard.global_shape, shard.offset, shard.flat) == ((2, 3), (0, 0), False)
    assert shard.region.is_whole
    assert Shard.whole("s", torch.tensor(1.0)).region.is_whole


@pytest.mark.parametrize(
    ("shape", "global_shape", "offset", "flat"),
    [
        ((2, 3), (3, 3), (2, 0), False),
        ((2, 3), (4, 3), (-1, 0), False),
        ((2,), (4, 3), (0,), False),
        ((5,), (4, 3), (8,), True),
        ((2, 3), (4, 3), (0, 0), True),
    ],
)
def test_piece_outside_its_tensor_is_refused(shape, global_shape, offset, flat):
    with pytest.raises(ValueError, match=r"is not inside a tensor of.*Fix: trim padding"):
        Shard("w", torch.zeros(shape), global_shape, offset, flat)


@st.composite
def cut_tensors(draw: st.DrawFn) -> list[Region]:
    """Regions that make up one tensor: a grid of blocks at random cuts, or flat ranges at random cuts."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    flat = draw(st.booleans())
    whole = (
        Region(shape, (0,), (torch.Size(shape).numel(),), flat=True)
        if flat
        else Region(shape, (0,) * len(shape), shape)
    )
    regions = [whole]
    for axis, size in enumerate(whole.space):
        cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))})
        regions = [
            Region(
                shape,
                (*r.offset[:axis], start, *r.offset[axis + 1 :]),
                (*r.shape[:axis], stop - start, *r.shape[axis + 1 :]),
                flat,
            )
            for r in regions
            for start, stop in pairwise(cuts)
        ]
    return draw(st.permutations(regions))


@given(cut_tensors(), st.data())
def test_coverage_is_complete_only_with_every_piece_once(regions, data):
    assert coverage_problem(regions) == ""
    twice = data.draw(st.sampled_from(regions))
    assert "overlap" in coverage_problem([*regions, twice])
    if len(regions) > 1:
        assert "elements" in coverage_problem([region for region in regions if region is not twice])


@given(cut_tensors())
def test_regions_survive_json(regions):
    assert [region_from_json(region_to_json(region)) for region in regions] == regions


def test_coverage_refuses_two_ways_of_cutting_one_tensor():
    flat, block = Region((2, 2), (0,), (2,), flat=True), Region((2, 2), (1, 0), (1, 2))
    assert "flat ranges and blocks" in coverage_problem([flat, block])
    assert "disagree" in coverage_problem([block, Region((3, 2), (0, 0), (1, 2))])


def test_aliases_are_names_of_one_tensor_not_of_overlapping_views():
    tied = torch.nn.Linear(3, 3)
    model = torch.nn.ModuleDict({"a": tied, "b": tied, "c": torch.nn.Linear(3, 3)})
    assert find_aliases(model.named_parameters(remove_duplicate=False)) == {"b.weight": "a.weight", "b.bias": "a.bias"}
    base = torch.arange(6.0).view(2, 3)
    assert (
        find_aliases([("whole", base), ("row", base[0]), ("turned", base.t()), ("e", base[:0]), ("f", base[:0])]) == {}
    )


def test_alias_with_other_values_is_refused():
    shards = [Shard.whole("a", torch.tensor([1.0, float("nan")])), Shard.whole("b", torch.tensor([1.0, float("nan")]))]
    assert [shard.name for shard in without_aliases(shards, {"b": "a"})] == ["a"]
    with pytest.raises(CheckpointError, match=r"'b' was declared to be tied to 'a', but their values differ"):
        without_aliases([shards[0], Shard.whole("b", torch.zeros(2))], {"b": "a"})
    with pytest.raises(CheckpointError, match=r"'b' is to be stored as 'z', which is not among the tensors"):
        without_aliases(shards, {"b": "z"})
