from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassPrecision

from taskloom import Loss
from taskloom.metrics import MetricStore


class Alone:
    """The group of one process; talking to it is a mistake."""

    data_parallel_size = 1

    def all_gather(self, value):
        raise AssertionError("one process has nobody to gather from")


class Group:
    """Several processes, played by threads."""

    def __init__(self, size: int):
        self.data_parallel_size = size
        self.gathers = 0
        self._barrier = threading.Barrier(size, timeout=10)
        self._values: dict[int, Any] = {}

    def all_gather(self, value):
        self._values[threading.get_ident()] = value
        if self._barrier.wait() == 0:
            self.gathers += 1
        gathered = torch.stack(list(self._values.values()))
        if self._barrier.wait() == 0:
            self._values.clear()
        self._barrier.wait()
        return gathered


def options(
    prog_bar=False, logger=True, on_step=None, on_epoch=None, reduce_fx="mean", add_dataloader_idx=True, rank_zero=False
):
    return prog_bar, logger, on_step, on_epoch, reduce_fx, add_dataloader_idx, rank_zero


@pytest.fixture
def store() -> MetricStore:
    made = MetricStore(Alone())
    made.enter("train", training=True)
    made.batch = torch.zeros(4, 2)
    return made


@pytest.fixture
def evaluating() -> MetricStore:
    made = MetricStore(Alone())
    made.enter("validate/0", training=False)
    made.batch = torch.zeros(4, 2)
    return made


# What is reported when ------------------------------------------------------------------------------------------------


@pytest.mark.holds("LG-01")
@pytest.mark.parametrize(
    ("training", "level", "on_step", "on_epoch", "flushed", "committed"),
    [
        (True, "batch", None, None, ["x"], []),
        (True, "batch", None, True, ["x_step"], ["x_epoch"]),
        (True, "batch", False, True, [], ["x"]),
        (True, "epoch", None, None, [], ["x"]),
        (False, "batch", None, None, [], ["x"]),
        (False, "epoch", None, None, [], ["x"]),
        (False, "batch", True, False, ["x"], []),
        (False, "batch", True, True, ["x_step"], ["x_epoch"]),
    ],
)
def test_defaults_follow_the_moment_and_two_reports_have_two_names(
    training, level, on_step, on_epoch, flushed, committed
):
    store = MetricStore(Alone())
    store.enter("key", training=training)
    store.level, store.batch = level, torch.zeros(2)
    store.log("x", 3.0, options(on_step=on_step, on_epoch=on_epoch), None)
    assert list(store.flush(1)) == flushed
    assert list(store.commit(["key"], 1)) == committed
    assert store.callback_metrics["x"] == 3.0


@pytest.mark.holds("LG-01")
def test_where_nothing_flushes_the_last_value_by_step_is_reported_at_the_end(evaluating):
    for value in (1.0, 2.0):
        evaluating.log("x", value, options(on_step=True, on_epoch=False), None)
    assert evaluating.commit(["validate/0"], 5) == {"x": 2.0}
    evaluating.enter("validate/0", training=False)
    assert evaluating.commit(["validate/0"], 6) == {}


@pytest.mark.holds("LG-01")
def test_each_destination_gets_what_is_meant_for_it(store):
    store.log("both", 1.0, options(prog_bar=True), None)
    store.log("quiet", 2.0, options(logger=False), None)
    assert store.flush(7) == store.logged_metrics == {"both": 1.0}
    assert store.progress_bar_metrics == {"both": 1.0}
    assert store.callback_metrics == {"both": 1.0, "quiet": 2.0}
    assert store.measured_at == {"both": 7, "quiet": 7}


def test_the_progress_bar_sees_new_values_where_that_waits_for_nothing(store):
    store.log("cpu", 1.0, options(prog_bar=True), None)
    store.log("epoch", 1.0, options(prog_bar=True, on_epoch=True), None)
    store.log("device", torch.tensor(2.0, device="meta"), options(prog_bar=True), None)
    assert store.peek() == {"cpu": 1.0, "epoch_step": 1.0}


@pytest.mark.holds("LG-01", "DA-06")
def test_of_several_loaders_each_name_gets_its_suffix_unless_it_refuses():
    store = MetricStore(Alone())
    keys = ["validate/0", "validate/1"]
    store.enter(keys[0], training=False)  # an epoch's hook before the first batch
    store.level = "epoch"
    store.log("whole", 0.5, options(), None)
    for number, suffix in enumerate(["/clean", "/noisy"]):
        store.enter(keys[number], training=False, suffix=suffix)
        store.batch = torch.zeros(2)
        store.log("loss", float(number), options(), None)
        store.log(f"own{number}", float(number), options(add_dataloader_idx=False), None)
    assert store.commit(keys, 1) == {"loss/clean": 0.0, "own0": 0.0, "whole": 0.5, "loss/noisy": 1.0, "own1": 1.0}


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("LG-01")
@pytest.mark.parametrize(
    "value",
    [
        3, 3.0, True + 2, np.float32(3), np.int64(3), np.array(3.0), np.array([3.0]), Fraction(3),
        torch.tensor(3), torch.tensor(3.0), torch.tensor([[3.0]]), torch.tensor(3.0, dtype=torch.bfloat16),
        torch.tensor(3.0, requires_grad=True), torch.nn.Parameter(torch.tensor([3.0])), Loss(torch.tensor(6.0), 2),
        Loss(torch.tensor(6.0, requires_grad=True), torch.tensor(2)),
    ],
    ids=repr,
)  # fmt: skip
def test_any_single_number_can_be_logged(store, value):
    store.log("x", value, options(on_epoch=True), None)
    assert store.flush(1) == {"x_step": 3.0}
    assert store.commit(["train"], 1) == {"x_epoch": 3.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            torch.zeros(2),
            r"'x' is not a single value. Got: 'a tensor of shape \(2,\)'. Fix: reduce it first, with .mean",
        ),
        (torch.zeros(0), r"'x' is not a single value. Got: 'a tensor of shape \(0,\)'"),
        (np.zeros(2), "'x' is neither a number, a single-valued tensor nor a torchmetrics.Metric"),
        ("3.0", "'x' is neither a number.*Got: '3.0'"),
        ({"a": 1}, "'x' is neither a number.*Fix: log one number, or several of them by name with self.log_dict"),
        (None, "'x' is neither a number.*Got: None"),
        (3j, "'x' is neither a number.*Got: 3j"),
    ],
)
def test_what_is_no_number_is_refused(store, value, text):
    with pytest.raises(TypeError, match=text):
        store.log("x", value, options(), None)


def test_a_value_that_changes_in_place_afterwards_was_read_before(store):
    total = torch.tensor(1.0)
    store.log("x", total, options(), None)
    total += 1
    assert store.flush(1) == {"x": 1.0}


@pytest.mark.holds("R35")
def test_no_graph_is_kept_alive(store):
    weight = torch.tensor(2.0, requires_grad=True, device="meta")
    store.log("x", weight * 3, options(on_epoch=True), None)
    (slot,) = store._slots.values()
    assert slot.latest.grad_fn is None
    assert slot.pending[0].grad_fn is None


@pytest.mark.holds("LG-01")
@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(math.nan)])
def test_what_is_not_finite_is_reported_as_it_is(store, value):
    store.log("x", value, options(on_epoch=True), None)
    assert store.flush(1)["x_step"] == pytest.approx(float(value), nan_ok=True)
    assert store.commit(["train"], 1)["x_epoch"] == pytest.approx(float(value), nan_ok=True)


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R7")
def test_the_weight_of_a_mean_is_the_batchs_or_the_one_that_is_given(evaluating):
    for size, value in ((4, 1.0), (1, 6.0)):
        evaluating.batch = torch.zeros(size, 2)
        evaluating.log("by_batch", value, options(), None)
        evaluating.log("given", value, options(), 10 if size == 1 else torch.tensor(5))
    assert evaluating.commit(["validate/0"], 1) == {"by_batch": 2.0, "given": pytest.approx(65 / 15)}


@pytest.mark.holds("R7")
def test_a_weight_that_cannot_be_told_is_an_error_and_not_a_guess(evaluating):
    evaluating.batch = (torch.zeros(4), torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"The weight of the metric 'x' cannot be read.*self.log\('x', value, batch_size"
    ):
        evaluating.log("x", 1.0, options(), None)
    evaluating.log("y", 1.0, options(), 4)
    evaluating.log("largest", 1.0, options(reduce_fx="max"), None)


def test_by_step_no_weight_is_needed(store):
    store.batch = object()
    store.log("x", 1.0, options(), None)
    assert store.flush(1) == {"x": 1.0}


@pytest.mark.holds("R7", "R8")
@pytest.mark.parametrize("weight", [0.0, torch.tensor(0)])
def test_a_loss_without_weight_changes_nothing(evaluating, weight):
    evaluating.log("x", Loss(torch.tensor(6.0), 2), options(), None)
    evaluating.log("x", Loss(torch.tensor(0.0), weight), options(), None)
    assert evaluating.commit(["validate/0"], 1) == {"x": 3.0}


rank_entries = st.lists(
    st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 9)), max_size=5), min_size=2, max_size=3
)


@pytest.mark.holds("R7")
@settings(max_examples=25, deadline=None)
@given(rank_entries)
def test_epoch_values_over_uneven_processes_are_those_of_the_pool(ranks):
    """Each rank sees another number of batches of other sizes; all start with one of no weight, so keys agree."""
    group = Group(len(ranks))

    def rank(entries: list[tuple[float, int]]) -> dict[str, float]:
        store = MetricStore(group)
        store.enter("validate/0", training=False)
        for value, size in [(0.0, 0), *entries]:
            store.log("mean", value, options(), size)
            store.log("ratio", Loss(torch.tensor(value * size, dtype=torch.float64), size), options(), None)
            store.log("sum", value * bool(size), options(reduce_fx="sum"), None)
            store.log("max", value, options(reduce_fx="max"), None)
        return store.commit(["validate/0"], 1)

    with ThreadPoolExecutor(len(ranks)) as pool:
        results = list(pool.map(rank, ranks))
    pooled = [entry for entries in ranks for entry in entries]
    weight = sum(size for _, size in pooled)
    mean = math.fsum(value * size for value, size in pooled) / weight if weight else math.nan
    expected = {
        "mean": pytest.approx(mean, abs=1e-10, nan_ok=True),
        "ratio": pytest.approx(mean, abs=1e-10, nan_ok=True),
        "sum": pytest.approx(math.fsum(value for value, _ in pooled), abs=1e-10),
        "max": max([0.0, *(value for value, _ in pooled)]),
    }
    assert all(result == expected for result in results)
    assert group.gathers == 1


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("LG-01")
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"reduce_fx": "max"}, r"with different options. Got: {'reduce_fx': \('mean', 'max'\)}.*use two names"),
        ({"on_epoch": True, "prog_bar": True}, r"Got: {'prog_bar': \(False, True\), 'on_epoch': \(None, True\)}"),
    ],
)
def test_one_name_has_one_set_of_options(store, changed, text):
    store.log("x", 1.0, options(), None)
    with pytest.raises(ValueError, match=text):
        store.log("x", 1.0, options(**changed), None)


ACCURACY = MulticlassAccuracy(2)


@pytest.mark.parametrize(
    ("first", "second"),
    [(1.0, Loss(torch.tensor(1.0), 1)), (Loss(torch.tensor(1.0), 1), 1.0), (1.0, ACCURACY), (ACCURACY, 1.0),
     (ACCURACY, Loss(torch.tensor(1.0), 1)), (Loss(torch.tensor(1.0), 1), ACCURACY), (ACCURACY, MulticlassAccuracy(2))],
    ids=str,
)  # fmt: skip
def test_one_name_has_one_kind_of_value(evaluating, first, second):
    evaluating.log("x", first, options(), None)
    with pytest.raises(ValueError, match=r"'x' is logged as different kinds of value.*Fix: use one kind"):
        evaluating.log("x", second, options(), None)


@pytest.mark.parametrize(("given", "batch_size"), [({"reduce_fx": "max"}, None), ({"reduce_fx": "sum"}, None), ({}, 4)])
def test_a_loss_brings_its_own_weight_and_reduction(store, given, batch_size):
    with pytest.raises(ValueError, match=r"'x' is logged as Loss.sum, weight. with another weight or reduction"):
        store.log("x", Loss(torch.tensor(1.0), 1), options(**given), batch_size)


def test_a_report_must_happen_somewhere(store):
    with pytest.raises(ValueError, match="'x' would be reported neither by step nor by epoch"):
        store.log("x", 1.0, options(on_step=False, on_epoch=False), None)


def test_a_hook_of_the_epoch_has_no_step(store):
    store.level = "epoch"
    with pytest.raises(ValueError, match="'x' is logged with on_step=True in a hook of the whole epoch"):
        store.log("x", 1.0, options(on_step=True), None)


@pytest.mark.parametrize("levels", [("batch", "epoch"), ("epoch", "batch")])
def test_one_name_belongs_to_batches_or_to_the_epoch(store, levels):
    store.level = levels[0]
    store.log("x", 1.0, options(), None)
    store.level = levels[1]
    with pytest.raises(ValueError, match="'x' is logged both per batch and in a hook of the whole epoch"):
        store.log("x", 1.0, options(), None)


def test_loaders_must_not_overwrite_each_other():
    store = MetricStore(Alone())
    for number in range(2):
        store.enter(f"test/{number}", training=False, suffix=f"/{number}")
        store.batch = torch.zeros(2)
        store.log("x", 1.0, options(add_dataloader_idx=False), None)
    with pytest.raises(ValueError, match=r"'x' is logged for several loaders.*leave add_dataloader_idx=False out"):
        store.commit(["test/0", "test/1"], 1)


@pytest.mark.parametrize("after", [lambda store: store.commit(["train"], 1), lambda store: store.forget(["train"])])
def test_what_would_never_be_reported_is_refused(store, after):
    after(store)
    with pytest.raises(RuntimeError, match=r"'x' is logged at a moment from which nothing is reported.*on_train_start"):
        store.log("x", 1.0, options(), None)
    assert store.flush(1) == store.peek() == {}


def test_a_sanity_check_leaves_nothing_behind(evaluating):
    metric = MulticlassAccuracy(2)
    metric(torch.tensor([0]), torch.tensor([1]))
    evaluating.log("x", metric, options(), None)
    evaluating.log("y", 5.0, options(), None)
    evaluating.forget(["validate/0"])
    assert not metric.update_called
    evaluating.enter("validate/0", training=False)
    assert evaluating.commit(["validate/0"], 1) == {}


# Metric objects -------------------------------------------------------------------------------------------------------

ONE, ZERO = torch.tensor([1]), torch.tensor([0])


@pytest.mark.holds("LG-21", "LC-16")
def test_a_metric_reports_its_step_and_its_epoch_and_starts_again(store):
    metric = MulticlassAccuracy(2, average="micro")
    for epoch in range(2):
        store.enter("train", training=True)
        for prediction in (ONE, ZERO, ZERO):
            metric(prediction, ONE)
            store.log("acc", metric, options(on_epoch=True), None)
        assert store.flush(epoch) == {"acc_step": 0.0}
        assert store.commit(["train"], epoch) == {"acc_epoch": pytest.approx(1 / 3)}
        assert not metric.update_called


@pytest.mark.holds("LG-21")
def test_a_metric_that_is_reported_by_step_only_is_reset_as_well(store):
    metric = MeanMetric()
    metric(1.0)
    store.log("mean", metric, options(), None)
    assert store.flush(1) == {"mean": 1.0}
    assert store.commit(["train"], 1) == {}
    assert not metric.update_called


@pytest.mark.holds("LG-21", "LC-16")
def test_a_metric_may_be_updated_only_where_its_epoch_is_reported(evaluating):
    metric = MeanMetric()
    metric.update(3.0)
    evaluating.log("mean", metric, options(), None)
    assert evaluating.commit(["validate/0"], 1) == {"mean": 3.0}


def test_a_metric_without_a_value_for_the_step_is_refused(store):
    metric = MeanMetric()
    metric.update(3.0)
    with pytest.raises(ValueError, match=r"'mean' has no value for this step.*call self.metric.preds, target."):
        store.log("mean", metric, options(), None)


@pytest.mark.holds("LG-21")
def test_one_metric_under_two_names_gives_both(evaluating):
    metric = MeanMetric()
    metric.update(3.0)
    for name in ("a", "b"):
        evaluating.log(name, metric, options(), None)
    assert evaluating.commit(["validate/0"], 1) == {"a": 3.0, "b": 3.0}


@pytest.mark.holds("LG-21")
def test_one_metric_in_two_loops_is_refused(store):
    metric = MeanMetric()
    metric(3.0)
    store.log("train", metric, options(), None)
    store.enter("validate/0", training=False)
    with pytest.raises(
        ValueError, match="MeanMetric, logged as 'val', is the same object that another loop or loader "
    ):
        store.log("val", metric, options(), None)


@pytest.mark.holds("LG-21")
def test_a_collection_is_logged_by_its_names_and_its_shared_states_are_not_copied(evaluating):
    # Accuracy and precision share their states; the second batch is where a copy would have gone stale.
    metrics = MetricCollection(
        [MulticlassAccuracy(2, average="micro"), MulticlassPrecision(2, average="micro")], prefix="val/"
    )
    for _ in range(2):
        for prediction in (ONE, ZERO):
            metrics.update(prediction, ONE)
            evaluating.log_all(metrics, options(), None)
            accuracy, precision = metrics._modules.values()
            assert accuracy.tp is precision.tp
        reported = evaluating.commit(["validate/0"], 1)
        assert reported == {"val/MulticlassAccuracy": 0.5, "val/MulticlassPrecision": 0.5}
        evaluating.enter("validate/0", training=False)


def test_a_metric_must_come_to_one_number(evaluating):
    metric = MulticlassConfusionMatrix(2)
    metric.update(ONE, ONE)
    evaluating.log("matrix", metric, options(), None)
    with pytest.raises(TypeError, match=r"'matrix' is not a single value. Got: 'a tensor of shape \(2, 2\)'"):
        evaluating.commit(["validate/0"], 1)


# Continuing -----------------------------------------------------------------------------------------------------------

reductions = st.sampled_from(["mean", "sum", "min", "max", torch.max])
logged = st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 9)), min_size=1, max_size=8)


@given(reductions, logged, st.data())
def test_a_store_continues_from_its_state_as_if_it_had_gone_on(reduce_fx, logged, data):
    stop = data.draw(st.integers(0, len(logged)))
    uninterrupted, continued = MetricStore(Alone()), MetricStore(Alone())
    for store in (uninterrupted, continued):
        store.enter("train", training=True)
    for number, (value, size) in enumerate(logged):
        if number == stop:
            state = json.loads(json.dumps(continued.state_dict()))
            continued = MetricStore(Alone())
            continued.load_state_dict(state)
            continued.enter("train", training=True)
        for store in (uninterrupted, continued):
            store.log("x", value, options(on_epoch=True, reduce_fx=reduce_fx), size)
            store.log("ratio", Loss(torch.tensor(value), size), options(on_epoch=True), None)
            if number == 0:
                store.log("once", value, options(on_epoch=True), size)
    assert continued.flush(1) == uninterrupted.flush(1)
    assert continued.commit(["train"], 1) == uninterrupted.commit(["train"], 1)


@pytest.mark.holds("R17")
def test_the_state_takes_one_transfer_and_is_empty_once_all_was_reported(store):
    log_many(store.log, 20)
    with Reads() as reads:
        (scope,) = store.state_dict()["scopes"]
        assert reads.count == 1
        assert len(scope["batch"]) == 60
        store.flush(1)
        store.commit(["train"], 1)
    assert store.state_dict()["scopes"] == [{"key": "train", "training": True, "batch": [], "epoch": []}]


# Costs ----------------------------------------------------------------------------------------------------------------


class Reads(TorchFunctionMode):
    """A device whose tensors (on meta) can be read in whole transfers only, which are counted; they are all zero."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            self.count += 1
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return function(*args, **(kwargs or {}))


def on_device(dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor:
    """A scalar of a device that cannot be looked at: `.item()`, and every copy to the CPU, raise."""
    return torch.empty((), dtype=dtype, device="meta", **kwargs)


def log_many(log: Callable[..., None], keys: int) -> None:
    for key in range(keys):
        log(f"loss{key}", on_device(requires_grad=True), options(prog_bar=True, on_epoch=True), None)
        log(f"count{key}", on_device(torch.int64), options(on_epoch=True, reduce_fx="sum"), None)
        log(f"ratio{key}", Loss(on_device(), on_device(torch.int64)), options(on_epoch=True), None)


@pytest.mark.holds("R17")
@pytest.mark.parametrize("keys", [1, 20])
def test_between_flushes_nothing_is_read_and_a_flush_reads_once_whatever_the_number_of_keys(store, keys):
    with pytest.raises(RuntimeError, match="meta"):
        on_device().item()
    with Reads() as reads:
        for _ in range(300):  # past the size of a chunk
            log_many(store.log, keys)
            store.peek()
        assert reads.count == 0
        assert len(store.flush(300)) == 3 * keys
        assert reads.count == 1
        log_many(store.log, keys)
        reported = store.commit(["train"], 301)
    assert len(reported) == 3 * keys
    assert reads.count == 2


@pytest.mark.holds("R35")
def test_a_long_evaluation_reads_before_its_values_fill_the_device(evaluating):
    with Reads() as reads:
        for _ in range(2 * 64 * 256):
            evaluating.log("x", on_device(), options(), None)
    (slot,) = evaluating._slots.values()
    assert reads.count == 2
    assert not slot.chunks


@pytest.mark.holds("R17")
def test_a_device_may_report_numbers_of_the_cpu_beside_its_own(store):
    store.log("x", on_device(), options(on_epoch=True), None)
    store.log("x", 4.0, options(on_epoch=True), None)
    store.log("y", torch.tensor(2.0), options(), None)
    with Reads() as reads:
        assert store.flush(1) == {"x_step": 4.0, "y": 2.0}
    assert reads.count == 1
    assert store.commit(["train"], 1) == {"x_epoch": 2.0}


@pytest.mark.gpu
@pytest.mark.holds("R17")
def test_on_a_gpu_logging_passes_where_every_wait_is_an_error(store):
    pairs = [(torch.rand((), device="cuda"), torch.randint(1, 9, (), device="cuda")) for _ in range(300)]
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for value, weight in pairs:
            store.log("value", value, options(on_epoch=True), 4)
            store.log("ratio", Loss(value, weight), options(on_epoch=True), None)
            store.log("number", 1.0, options(on_epoch=True), weight)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    read = torch.tensor([[value, weight] for value, weight in pairs], dtype=torch.float64)
    assert store.flush(1)["value_step"] == read[-1, 0]
    reported = store.commit(["train"], 1)
    assert reported["value_epoch"] == pytest.approx(read[:, 0].mean().item())
    assert reported["ratio_epoch"] == pytest.approx((read[:, 0].sum() / read[:, 1].sum()).item())
    assert reported["number_epoch"] == 1.0
