from __future__ import annotations

import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from taskloom.checkpoint import CheckpointError, decode_state, encode_state


def round_trip(value):
    encoded = encode_state(value)
    return decode_state(json.loads(json.dumps(encoded.data, allow_nan=False)), encoded.tensors)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert bytes(one.contiguous().view(-1).view(torch.uint8)) == bytes(
            other.contiguous().view(-1).view(torch.uint8)
        )
    elif isinstance(one, (np.ndarray, np.generic)):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    elif isinstance(one, dict):
        assert len(one) == len(other)
        for (key, value), (other_key, other_value) in zip(one.items(), other.items(), strict=True):
            assert_same(key, other_key)
            assert_same(value, other_value)
    elif isinstance(one, (list, tuple, deque)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, float) and math.isnan(one):
        assert math.isnan(other)
    elif isinstance(one, complex):
        assert_same(one.real, other.real)
        assert_same(one.imag, other.imag)
    else:
        assert one == other
        assert not isinstance(one, float) or math.copysign(1, one) == math.copysign(1, other)


hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=8)
    | st.dates()
    | st.timedeltas()
    | st.sampled_from(
        [torch.float32, torch.device("cpu"), torch.device("cuda", 1), torch.Size([2, 3]), Path("a/b"), range(1, 9, 3)]
    ),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
leaves = (
    hashable
    | st.floats()
    | st.complex_numbers()
    | st.datetimes(timezones=st.none() | st.just(timezone.utc) | st.just(timezone(timedelta(hours=-5, minutes=-30))))
    | st.times()
    | st.binary(max_size=8).map(bytearray)
    | hnp.arrays(
        hnp.boolean_dtypes()
        | hnp.integer_dtypes(endianness="=")
        | hnp.unsigned_integer_dtypes(endianness="=")
        | hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64))
        | hnp.complex_number_dtypes(endianness="=", sizes=(64, 128)),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ).map(lambda array: array if isinstance(array, np.ndarray) else np.asarray(array))
    | hnp.from_dtype(np.dtype("float32"))
    | hnp.from_dtype(np.dtype("uint64"))
)
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3).map(OrderedDict)
        | st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=5))
        | st.sets(hashable, max_size=3)
        | st.dictionaries(hashable, st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(nested)
def test_all_data_comes_back_as_it_was(value):
    assert_same(round_trip(value), value)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.bool,
        torch.complex64,
        torch.complex128,
    ],
)
@pytest.mark.parametrize("shape", [(), (0, 2), (3, 2)])
def test_tensors_come_back_bit_equal(dtype, shape):
    tensor = (torch.arange(math.prod(shape)).reshape(shape) % 2).to(dtype)
    assert_same(round_trip({"x": [tensor]}), {"x": [tensor]})


def test_tensor_views_and_equal_paths_are_kept_apart():
    base = torch.arange(12.0).view(3, 4)
    state = {"a": {"b": base.t()}, "a.b": base[:, 1], "conj": torch.tensor([1 + 2j]).conj()}
    assert_same(round_trip(state), {**state, "conj": state["conj"].resolve_conj()})


def test_marker_keys_of_the_user_are_data():
    for value in (
        {"$tuple": [1]},
        {"$": {}},
        {"$dict": 3, "x": 1},
        {"x": {"$tensor": {"key": "y"}}},
        {1: 2, "$int": "0x1"},
    ):
        assert_same(round_trip(value), value)


def test_sets_are_written_in_one_order_whatever_the_hash_seed():
    assert encode_state({"c", "a", "b"}).data == {"$set": ["a", "b", "c"]}


def test_text_that_is_not_unicode_and_long_integers_survive():
    assert_same(round_trip(["\ud800", 10**6000, -(2**64)]), ["\ud800", 10**6000, -(2**64)])
    assert_same(round_trip({"\ud800": torch.ones(1)}), {"\ud800": torch.ones(1)})


def test_random_states_of_every_generator_survive():
    import random

    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    assert_same(round_trip(state), state)


class Color(enum.IntEnum):
    RED = 1


@dataclass
class Settings:
    lr: float = 0.1


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (lambda x: x, r"save its name.*save_hyperparameters\(ignore=\['field'\]\)"),
        (torch.nn.ReLU, r"save its name"),
        (torch.nn.Linear(1, 1), r"save its state_dict\(\)"),
        (torch.nn.Parameter(torch.ones(1)), r"save tensor\.detach\(\)"),
        (torch.Generator(), r"save its get_state\(\)"),
        (Color.RED, r"save its \.value"),
        (Settings(), r"save dataclasses\.asdict\(value\)"),
        (Pair(1, 2), r"save tuple\(value\)"),
        (defaultdict(list), r"save dict\(value\)"),
        (object(), r"turn it into numbers"),
        (datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Zurich")), r"astimezone\(timezone\.utc\)"),
        (np.array(["a"]), r"save value\.tolist\(\)"),
        (np.datetime64("2026-01-01"), r"save value\.tolist\(\)"),
        (torch.eye(2).to_sparse(), r"save tensor\.to_dense\(\)"),
        (torch.empty(1, device="meta"), r"has no values"),
    ],
)
def test_what_is_not_data_is_refused_by_field_with_the_remedy(value, remedy):
    with pytest.raises(CheckpointError, match=r"^hparams\.model\[1\]\.field (?s:.)*" + remedy):
        encode_state({"model": [0, {"field": value}]}, where="hparams")


def test_open_file_is_refused(tmp_path):
    with (
        (tmp_path / "x").open("w") as file,
        pytest.raises(CheckpointError, match=r"state\.log is not data.*save its path"),
    ):
        encode_state({"log": file})


def test_every_refused_field_is_named_at_once():
    message = r"2 values cannot be saved:\n  1\. state\['a'\] is not.*\n  2\. state\[\(1, 2\)\] is not"
    with pytest.raises(CheckpointError, match=message):
        encode_state({"a": print, (1, 2): print})


def test_cycles_and_bottomless_nesting_are_refused():
    loop: list = []
    loop.append({"again": loop})
    with pytest.raises(CheckpointError, match=r"state\[0\]\.again contains itself"):
        encode_state(loop)
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(CheckpointError, match=r"nested more than 100 levels deep"):
        encode_state(deep)
    shared = [1]
    assert round_trip([shared, shared]) == [[1], [1]]


@pytest.mark.parametrize(
    "data",
    [
        {"$os.system": "true"},
        {"$tuple": 3},
        {"$tensor": {"key": "gone"}},
        {"$dtype": "nn.Module"},
        {"$device": "a b"},
        {"$set": [[1]]},
        {"$dict": [[1]]},
        {"$bytes": "?"},
        {"$tuple": [], "x": 1},
        {"$scalar": {"dtype": "O", "hex": ""}},
        {"$scalar": {"dtype": "float32", "hex": ""}},
        {"$size": ["x"]},
        {"$int": 5},
        {"$float": None},
    ],
)
def test_damaged_or_unknown_data_is_an_error_that_says_where(data):
    with pytest.raises(CheckpointError, match=r"^some/state\.json cannot be decoded"):
        decode_state([data], {}, where="some/state.json")


def test_date_types_used_above_are_distinct():
    value = [date(2026, 1, 2), datetime(2026, 1, 2), time(3, 4, 5, 6), timedelta(-1, 2, 3)]
    assert_same(round_trip(value), value)
