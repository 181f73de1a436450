"""What `log` does within a run."""

from __future__ import annotations

import math

import pytest
import torch
from task.samples import Line, loader, make_trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryPrecision

from taskloom import Callback, LogPolicy, Loss, TaskloomWarning, TaskModule


class Flushes(Callback):
    """Keeps what each flush reported, and when."""

    def __init__(self):
        self.reported = []

    def on_log(self, trainer, task, metrics, step):
        self.reported.append((step, dict(metrics)))


def fit(task: TaskModule, batches: int = 3, **arguments) -> list[tuple[int, dict[str, float]]]:
    flushes = Flushes()
    make_trainer(callbacks=[flushes], **arguments).fit(task, loader(batches), loader(2))
    return flushes.reported


class Logs(Line):
    def training_step(self, batch, batch_idx):
        self.log("step", float(batch_idx))
        self.log("both", float(batch_idx), on_epoch=True)
        self.log("epoch", float(batch_idx), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("val", float(batch_idx))


@pytest.mark.holds("LG-01", "LG-02")
def test_steps_are_reported_at_every_flush_and_epochs_at_their_end():
    assert fit(Logs(), log_every_n_steps=2) == [
        (2, {"step": 1.0, "both_step": 1.0}),
        (3, {"val": 0.5}),
        (3, {"step": 2.0, "both_step": 2.0}),
        (3, {"both_epoch": 1.0, "epoch": 1.0}),
    ]


@pytest.mark.holds("LG-02")
@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        (4, [4, 8]),
        ("25%", [2, 4, 6, 8]),
        (LogPolicy(every=4, first_step=True), [1, 4, 8]),
        (100, [8]),
    ],
)
def test_how_often_metrics_are_flushed(policy, steps):
    reported = fit(Logs(), batches=8, log_every_n_steps=policy, val_check_interval=None)
    assert [step for step, metrics in reported if "step" in metrics] == steps


@pytest.mark.holds("LG-03")
@pytest.mark.parametrize(("nan_filter", "written"), [(True, {"fine"}), (False, {"fine", "nan", "inf"})])
def test_what_is_not_finite_can_be_kept_from_the_loggers(tmp_path, nan_filter, written):
    class LogsNaN(Line):
        def training_step(self, batch, batch_idx):
            self.log_dict({"fine": 1.0, "nan": math.nan, "inf": math.inf})
            return super().training_step(batch, batch_idx)

    trainer = make_trainer(logger="jsonl", log_every_n_steps=LogPolicy(1, nan_filter=nan_filter), run_dir=tmp_path)
    flushes = Flushes()
    trainer.add_callback(flushes)
    trainer.fit(LogsNaN(), loader(1))
    text = (trainer.run_folder / "metrics.jsonl").read_text()
    assert {name for name in ("fine", "nan", "inf") if f'"{name}"' in text} == written
    assert set(flushes.reported[0][1]) == {"fine", "nan", "inf"}
    assert math.isnan(trainer.callback_metrics["nan"])


TRAINING_HOOKS = {
    "on_train_start": True, "on_train_epoch_start": True, "on_train_batch_start": False, "on_before_zero_grad": False,
    "on_before_backward": False, "on_after_backward": False, "on_before_optimizer_step": False,
    "on_train_batch_end": False, "on_train_epoch_end": True,
}  # fmt: skip
EVALUATION_HOOKS = {
    "on_validation_start": True, "on_validation_epoch_start": True, "on_validation_batch_start": True,
    "on_validation_batch_end": True, "on_validation_epoch_end": True,
}  # fmt: skip


@pytest.mark.holds("LG-01")
@pytest.mark.parametrize("by_callback", [False, True])
@pytest.mark.parametrize(("hook", "by_epoch"), [*TRAINING_HOOKS.items(), *EVALUATION_HOOKS.items()])
def test_hooks_may_log(hook, by_epoch, by_callback):
    def log(owner, *arguments):
        task = arguments[1] if by_callback else owner
        task.log("logged", 2.0)

    owner = type("Owner", (Callback,) if by_callback else (Logs,), {hook: log})
    task = Logs() if by_callback else owner()
    flushes = Flushes()
    callbacks = [owner(), flushes] if by_callback else [flushes]
    make_trainer(callbacks=callbacks, log_every_n_steps=1).fit(task, loader(2), loader(2))
    steps = [step for step, metrics in flushes.reported if "logged" in metrics]
    assert steps == ([2] if by_epoch else [1, 2])
    assert all(metrics.get("logged", 2.0) == 2.0 for _, metrics in flushes.reported)


@pytest.mark.holds("LG-01")
@pytest.mark.parametrize(
    "hook", ["setup", "configure_model", "configure_optimizers", "on_fit_start", "on_validation_end", "on_train_end",
             "on_sanity_check_end", "on_fit_end", "teardown"],
)  # fmt: skip
def test_hooks_whose_values_nothing_would_report_may_not(hook):
    def log(self, *arguments):
        self.log("lost", 1.0)

    task = type("Owner", (Logs,), {hook: log})()
    with pytest.raises(RuntimeError, match=r"'lost' is logged at a moment from which nothing is reported"):
        make_trainer(num_sanity_val_steps=1).fit(task, loader(2), loader(2))


def test_a_prediction_reports_nothing():
    class Predicts(Line):
        def predict_step(self, batch, batch_idx):
            self.log("lost", 1.0)

    with pytest.raises(RuntimeError, match=r"'lost' is logged at a moment from which nothing is reported"):
        make_trainer().predict(Predicts(), loader())


@pytest.mark.holds("LG-01")
def test_outside_a_trainer_logging_warns_and_does_nothing():
    task = Line()
    for call in (lambda: task.log("x", 1.0), lambda: task.log_dict({"x": 1.0})):
        with pytest.warns(TaskloomWarning, match="was called outside a Trainer; nothing is recorded") as caught:
            call()
        assert caught[0].filename == __file__


@pytest.mark.holds("LG-01")
def test_a_sanity_check_reports_nothing():
    class LogsSanity(Logs):
        def validation_step(self, batch, batch_idx):
            self.log("val", 100.0 if self.trainer.sanity_checking else 1.0)

    reported = fit(LogsSanity(), num_sanity_val_steps=2)
    assert [metrics["val"] for _, metrics in reported if "val" in metrics] == [1.0]


@pytest.mark.holds("LG-01", "DA-06")
@pytest.mark.parametrize("named", [False, True])
def test_metrics_of_several_loaders_are_told_apart(named):
    class LogsLoader(Logs):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val", float(dataloader_idx))

        def on_validation_epoch_end(self):
            self.log("whole", 7.0)

    loaders = {"clean": loader(1), "noisy": loader(2)} if named else [loader(1), loader(2)]
    names = ["val/clean", "val/noisy"] if named else ["val/dataloader_idx_0", "val/dataloader_idx_1"]
    first, second = make_trainer().validate(LogsLoader(), loaders, verbose=False)
    assert (first[names[0]], second[names[1]]) == (0.0, 1.0)
    assert names[1] not in first
    assert first["whole"] == second["whole"] == 7.0


@pytest.mark.holds("LG-01")
def test_one_name_with_two_reductions_stops_the_run():
    class Changes(Line):
        def training_step(self, batch, batch_idx):
            self.log("x", 1.0, reduce_fx="max" if batch_idx else "mean")
            return super().training_step(batch, batch_idx)

    with pytest.raises(
        ValueError, match=r"'x' is logged with different options. Got: {'reduce_fx': \('mean', 'max'\)}"
    ):
        make_trainer().fit(Changes(), loader())


# Metric objects -------------------------------------------------------------------------------------------------------


class Measures(TaskModule):
    """Labels whether a number is positive; wrongly for every number below -2."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.accuracy = BinaryAccuracy()
        self.scores = MetricCollection([BinaryAccuracy(), BinaryPrecision()], prefix="val/")

    def predicted(self, x):
        return (x > 0) | (x < -2)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        self.accuracy(self.predicted(x), x > 0)
        self.log("accuracy", self.accuracy, on_epoch=True)
        return (self.weight * x).sum()

    def validation_step(self, batch, batch_idx):
        (x,) = batch
        self.scores.update(self.predicted(x), x > 0)
        self.log_dict(self.scores)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.holds("LG-21", "LC-16")
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_metric_objects_stream_over_an_epoch_and_start_again_with_the_next(batch_size):
    data = DataLoader(TensorDataset(torch.tensor([3.0, -1, 2, -3, 1, -4, 4])), batch_size=batch_size)
    flushes = Flushes()
    make_trainer(max_epochs=2, log_every_n_steps=1, callbacks=[flushes]).fit(Measures(), data, data)
    by_name = {
        name: [metrics[name] for _, metrics in flushes.reported if name in metrics]
        for name in ("accuracy_step", "accuracy_epoch", "val/BinaryAccuracy", "val/BinaryPrecision")
    }
    assert by_name["accuracy_epoch"] == by_name["val/BinaryAccuracy"] == [pytest.approx(5 / 7)] * 2
    assert by_name["val/BinaryPrecision"] == [pytest.approx(4 / 6)] * 2
    assert len(by_name["accuracy_step"]) == 2 * len(data)
    if batch_size == 1:
        assert by_name["accuracy_step"] == [1, 1, 1, 0, 1, 0, 1] * 2


@pytest.mark.holds("LG-21")
@pytest.mark.parametrize("saved_at", [0, 1, 2])
def test_a_run_that_continues_within_an_epoch_reports_all_of_it(tmp_path, saved_at):
    class Averages(Measures):
        def training_step(self, batch, batch_idx):
            self.log("mean", float(batch_idx), on_epoch=True)
            if batch_idx == 0:
                self.log("once", 5.0, on_epoch=True)
            return super().training_step(batch, batch_idx)

    class Saves(Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            if batch_idx == saved_at:
                trainer.save_checkpoint(tmp_path / "saved")

    data = DataLoader(TensorDataset(torch.tensor([3.0, -1, 2, -3, 1, -4, 4])), batch_size=2)
    whole, resumed = make_trainer(callbacks=[Saves()]), make_trainer()
    whole.fit(Averages(), data)
    resumed.fit(Averages(), data, ckpt_path=tmp_path / "saved")
    names = ("accuracy_epoch", "mean_epoch", "once_epoch", "mean_step")
    assert [resumed.callback_metrics[name] for name in names] == [whole.callback_metrics[name] for name in names]


# Weights --------------------------------------------------------------------------------------------------------------


class Weighted(TaskModule):
    """Evaluates a sequence classifier by losses that average over samples, tokens and class weights."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.logits = torch.nn.Parameter(torch.randn(7, 4, generator=generator, dtype=torch.float64))
        self.class_weights = torch.tensor([0.1, 1.0, 2.0, 5.0], dtype=torch.float64)

    def validation_step(self, batch, batch_idx):
        tokens, labels = batch
        logits, kept = self.logits[tokens], labels >= 0
        per_token = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        weights = self.class_weights[labels.clamp(min=0)] * kept
        self.log("tokens", Loss(per_token.sum(), kept.sum()))
        self.log("tokens_by_size", per_token.sum() / kept.sum(), batch_size=kept.sum())
        self.log("samples", per_token.mean(1).mean())
        self.log("classes", Loss((per_token * weights).sum(), weights.sum()))


@pytest.mark.holds("R8", "R7")
def test_losses_do_not_depend_on_the_evaluation_batch_size():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 7, (65, 5), generator=generator)
    labels = torch.randint(0, 4, (65, 5), generator=generator)
    labels[torch.rand(65, 5, generator=generator) < 0.4] = -100
    labels[:, 0] = 1  # no batch is without a token
    data, task = TensorDataset(tokens, labels), Weighted()
    results = [
        make_trainer(precision="64-true").validate(task, DataLoader(data, size, shuffle), verbose=False)[0]
        for size in (65, 1, 3, 8, 64)
        for shuffle in (False, True)
    ]
    logits = task.logits.detach()[tokens]
    mean = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100)
    assert results[0]["tokens"] == pytest.approx(mean.item(), rel=1e-12)
    assert results[0]["tokens"] != pytest.approx(results[0]["samples"], rel=1e-3)
    by_class = F.cross_entropy(logits.transpose(1, 2), labels, weight=task.class_weights, ignore_index=-100)
    assert results[0]["classes"] == pytest.approx(by_class.item(), rel=1e-12)
    for result in results:
        assert result == pytest.approx(results[0], rel=1e-10)


@pytest.mark.holds("R7")
def test_a_batch_that_does_not_tell_its_size_stops_the_evaluation():
    class Ragged(Line):
        def validation_step(self, batch, batch_idx):
            self.log("loss", batch["x"].sum())

    ragged = DataLoader([0], batch_size=1, collate_fn=lambda samples: {"x": torch.ones(2), "y": torch.ones(3)})
    with pytest.raises(ValueError, match=r"The weight of the metric 'loss' cannot be read from the batch.*batch_size="):
        make_trainer().validate(Ragged(), ragged, verbose=False)
