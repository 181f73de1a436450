from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskloom.metrics.slot import Slot, read_together, reduction_of


def slot(reduction: str = "mean") -> Slot:
    return Slot("x", "x", (), reduction, on_step=False, on_epoch=True)


values = st.floats(-1e6, 1e6)
entries = st.lists(st.tuples(values, st.integers(1, 50)), min_size=1, max_size=20)


def expected(reduction: str, entries: list[tuple[float, int]]) -> float:
    numbers = [value for value, _ in entries]
    if reduction == "mean":
        return math.fsum(value * weight for value, weight in entries) / sum(weight for _, weight in entries)
    return {"sum": math.fsum, "min": min, "max": max}[reduction](numbers)


@pytest.mark.parametrize("reduction", ["mean", "sum", "min", "max"])
@given(entries, st.data())
def test_numbers_and_tensors_in_any_mixture_reduce_alike(reduction, entries, data):
    """A tensor stands for a value on a device here: it waits until it is collected."""
    filled = slot(reduction)
    for value, weight in entries:
        held = data.draw(st.booleans())
        filled.add(torch.tensor(value, dtype=torch.float64) if held else value, weight)
    for chunk in filled.collect():
        filled.fold(*(tensor.double() for tensor in chunk))
    assert filled.result() == pytest.approx(expected(reduction, entries), rel=1e-10, abs=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "min", "max"])
@pytest.mark.parametrize("nan_at", [0, 1, 2])
def test_nan_is_never_lost(reduction, nan_at):
    filled = slot(reduction)
    for number in range(3):
        filled.add(math.nan if number == nan_at else float(number), 1)
    assert math.isnan(filled.result())


def test_the_mean_of_nothing_is_nan_and_clearing_starts_again():
    filled = slot()
    assert math.isnan(filled.result())
    filled.add(3.0, 2)
    filled.clear()
    assert not filled.seen
    filled.add(5.0, 1)
    assert filled.result() == 5.0


@pytest.mark.holds("R35")
def test_numbers_are_not_kept():
    filled = slot()
    for number in range(10_000):
        filled.add(float(number), 1)
    assert not filled.pending
    assert not filled.chunks
    assert filled.result() == pytest.approx(4999.5)


@pytest.mark.holds("R35")
def test_tensors_are_joined_and_ask_to_be_read_before_they_are_too_many():
    filled = slot()
    due = [filled.add(torch.tensor(1.0), 1) for _ in range(256 * 64)]
    assert due == [False] * (256 * 64 - 1) + [True]
    assert len(filled.chunks) == 64
    assert not filled.pending


def test_whole_numbers_on_a_device_stay_exact():
    filled = slot("sum")
    large = 2**53 - 7
    filled.add(torch.tensor(large), 1)
    ((kept, _),) = filled.collect()
    assert kept.dtype == torch.int64
    filled.fold(kept.double(), torch.ones(1).double())
    assert filled.result() == large


def test_no_float64_is_made_on_a_device_unless_a_value_has_it():
    filled = slot()
    for value in (torch.tensor(1.0), torch.tensor(2, dtype=torch.int32), torch.tensor(3.0, dtype=torch.bfloat16)):
        filled.add(value.to("meta"), 1)
    filled.add(4.0, torch.tensor(2, device="meta"))
    ((kept, weights),) = filled.collect()
    assert kept.dtype == weights.dtype == torch.float32


@given(st.data())
def test_tensors_of_any_dtype_are_read_bit_by_bit(data):
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool]
    given_dtypes = data.draw(st.lists(st.sampled_from(dtypes), min_size=1, max_size=6))
    tensors = [(torch.rand(data.draw(st.integers(0, 3)), 2) * 100).to(dtype) for dtype in given_dtypes] + [
        torch.tensor(1.5)
    ]
    for tensor, read in zip(tensors, read_together(tensors), strict=True):
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor.reshape(-1))


@pytest.mark.parametrize(
    ("reduce_fx", "reduction"),
    [("mean", "mean"), ("avg", "mean"), (torch.mean, "mean"), (torch.sum, "sum"), (sum, "sum"), (min, "min"),
     (torch.max, "max"), (max, "max")],
)  # fmt: skip
def test_reductions_by_name_or_function(reduce_fx, reduction):
    assert reduction_of("x", reduce_fx) == reduction


@pytest.mark.parametrize("reduce_fx", ["median", torch.std, ["mean"]])
def test_a_reduction_that_there_is_not(reduce_fx):
    with pytest.raises(ValueError, match=r"'x' asks for a reduction that there is not.*use 'mean', 'sum', 'min' or"):
        reduction_of("x", reduce_fx)
