from __future__ import annotations

from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taskloom.core.transfer import count_samples, move_to_device

META = torch.device("meta")
Pair = namedtuple("Pair", "x y")


class Point(NamedTuple):
    x: Tensor
    name: str


class LongerPoint(Point):
    pass


@dataclass
class Sample:
    x: Tensor
    label: str
    derived: Any = field(init=False, default=None)


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    label: str


@dataclass(slots=True)
class Slotted:
    x: Tensor


class Encoding(UserDict):
    """A mapping whose constructor wants more than a mapping, and which carries an attribute of its own."""

    def __init__(self, data: dict, tokenizer: str):
        super().__init__(data)
        self.tokenizer = tokenizer


@dataclass
class Output(OrderedDict):
    """A mapping and a dataclass at once, as the outputs of Transformers' models."""

    x: Tensor
    label: str

    def __post_init__(self):
        self["x"], self["label"] = self.x, self.label

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)

    def __reduce__(self):
        return type(self), (self.x, self.label)


class Box:
    """Not a collection; it knows how to move."""

    def __init__(self, x: Tensor):
        self.x = x

    def to(self, device):
        return Box(self.x.to(device))


class InPlace:
    """Moves itself and returns nothing."""

    def __init__(self):
        self.asked = []

    def to(self, device, non_blocking=False):
        self.asked.append((device, non_blocking))


def ones() -> Tensor:
    return torch.ones(2)


@pytest.mark.holds("R58")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: [x, "text", None],
        lambda x: (x, 3),
        lambda x: {"x": x, "text": "abc", "n": {"deep": [x]}},
        lambda x: OrderedDict(b=x, a=1),
        lambda x: defaultdict(list, x=x),
        lambda x: MappingProxyType({"x": x, "y": 1}),
        lambda x: UserList([x, "y"]),
        lambda x: deque([x, "y"], maxlen=5),
        lambda x: Pair(x, {"y": x}),
        lambda x: Point(x, "name"),
        lambda x: LongerPoint(x, "name"),
        lambda x: Sample(x, "label"),
        lambda x: Frozen(x, "label"),
        lambda x: Slotted(x),
        lambda x: Encoding({"ids": x, "text": "abc"}, tokenizer="bpe"),
        lambda x: Output(x, "label"),
        lambda x: Box(x),
        lambda x: [range(3), b"raw", bytearray(b"raw"), {1, 2}, object, x],
    ],
)
def test_tensors_arrive_and_everything_else_is_what_it_was(make):
    batch = make(ones())
    moved = move_to_device(batch, META)
    assert type(moved) is type(batch)
    before, after = list(leaves(batch)), list(leaves(moved))
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert new.device == META if isinstance(old, Tensor) else new is old
    assert all(leaf.device.type == "cpu" for leaf in leaves(batch) if isinstance(leaf, Tensor))


def leaves(batch):
    if isinstance(batch, Output):
        yield from leaves([batch.x, batch.label, *batch.values()])
    elif isinstance(batch, (Box, Sample, Frozen)):
        yield from leaves(list(vars(batch).values()))
    elif isinstance(batch, Slotted):
        yield batch.x
    elif isinstance(batch, Encoding):
        yield from leaves([*batch.values(), batch.tokenizer])
    elif isinstance(batch, (dict, MappingProxyType, UserDict)):
        yield from leaves([*batch.keys(), *batch.values()])
    elif isinstance(batch, (tuple, list, deque, UserList)):
        for each in batch:
            yield from leaves(each)
    else:
        yield batch


@pytest.mark.holds("R58")
@pytest.mark.parametrize("batch", [{"texts": ["a", "b"], "meta": {"k": object()}}, [1, "x"], object(), None, "text"])
def test_a_batch_without_tensors_is_the_same_object(batch):
    assert move_to_device(batch, META) is batch


def test_a_default_factory_and_a_length_bound_are_kept():
    assert move_to_device(defaultdict(list, x=ones()), META).default_factory is list
    assert move_to_device(deque([ones()], maxlen=5), META).maxlen == 5


class Copies(TorchFunctionMode):
    """Notes how tensors are asked to move, without moving them."""

    def __init__(self):
        self.non_blocking = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.to:
            self.non_blocking.append(kwargs["non_blocking"])
            return args[0]
        return function(*args, **(kwargs or {}))


@pytest.mark.holds("DA-16")
@pytest.mark.parametrize(("device", "non_blocking"), [("cuda", True), ("xpu", True), ("mps", False), ("cpu", False)])
def test_copies_to_an_accelerator_do_not_block(device, non_blocking):
    own = InPlace()
    with Copies() as copies:
        moved = move_to_device([ones(), own], torch.device(device))
    assert copies.non_blocking == [non_blocking]
    assert own.asked == [(torch.device(device), non_blocking)]
    assert moved[1] is own


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(4, 2), 4),
        (torch.zeros(()), None),
        ([torch.zeros(4, 2), torch.zeros(4)], 4),
        ((torch.zeros(4, 2), torch.zeros(3)), None),
        ((torch.zeros(4), 0.5, None, "train"), 4),
        (("train", torch.zeros(4)), 4),
        ({"x": torch.zeros(4), "scale": torch.tensor(2.0), "task": "qa"}, 4),
        ({"x": torch.zeros(4), "texts": ["a", "b", "c", "d"]}, 4),
        ({"x": torch.zeros(4), "texts": ["a", "b"]}, None),
        (["a", "b", "c"], 3),
        ({"texts": ("a", "b")}, 2),
        ({"in": {"ids": torch.zeros(4, 7)}, "out": [torch.zeros(4)]}, 4),
        (UserDict(ids=torch.zeros(4, 7)), 4),
        (Pair(torch.zeros(4), {"z": [torch.zeros(4, 1)]}), 4),
        (Frozen(torch.zeros(4), "label"), 4),
        (Slotted(torch.zeros(4)), 4),
        ([{"x": torch.zeros(3)}, {"x": torch.zeros(5)}], None),
        (3, None),
        ([], None),
        ({}, None),
        (None, None),
        (range(5), None),
    ],
)
def test_the_samples_of_a_batch_are_counted_only_where_its_tensors_agree(batch, samples):
    assert count_samples(batch) == samples


nested = st.recursive(
    st.just("tensor") | st.just("text") | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(nested, st.integers(2, 6))
def test_at_any_depth(shape, size):
    found = []

    def build(node):
        if node == "tensor":
            found.append(torch.zeros(size, 2))
            return found[-1]
        if isinstance(node, list):
            return [build(each) for each in node] + [0]  # a number, so that a list of texts is none
        if isinstance(node, dict):
            return {key: build(value) for key, value in node.items()}
        return node

    assert count_samples(build(shape)) == (size if found else None)
