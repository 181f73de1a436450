"""Batches that are left out: by the step, or because their loss is not finite. One policy, counted and capped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop.test_window import Batches, Tokens, assert_same, by_hand, split, tokens
from loop.tiny import Line, equal, loader, quiet, weights

from taskloom import Accumulation, Loss, Skip
from taskloom.core.errors import NonFiniteError, TaskloomWarning
from taskloom.loggers import Logger

LEFT_OUT = {
    "class": lambda loss: Skip,
    "instance": lambda loss: Skip("nothing to learn"),
    "None": lambda loss: None,
    "in a dict": lambda loss: {"loss": Skip, "more": 1},
    "NaN": lambda loss: loss * float("nan"),
    "infinite": lambda loss: {"loss": loss * float("inf")},
    "Loss": lambda loss: Loss(loss * float("nan"), 3),
}


class Leaving(Tokens):
    """Leaves the batches `out` out, in one of the ways above."""

    def __init__(self, way: str, out: set[int], kind: str = "tensor", lr: float = 0.0) -> None:
        super().__init__(kind, lr)
        self.way, self.out = way, out

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return LEFT_OUT[self.way](loss.sum if isinstance(loss, Loss) else loss) if batch_idx in self.out else loss


def run(task: Leaving, window: int, sizes: list[int] | None = None, **policy: Any) -> Any:
    sizes = sizes or [8] * 4
    chosen = {"on_skip": "drop_and_reweight", "on_nonfinite": "drop_and_reweight", **policy}
    trainer = quiet(
        max_epochs=1, precision="64-true", accumulate_grad_batches=Accumulation(window, **chosen), log_every_n_steps=1
    )
    trainer.fit(task, Batches(split(tokens(), sizes)))
    return trainer


@pytest.mark.holds("R28", "TM-02")
@pytest.mark.parametrize("way", LEFT_OUT)
@pytest.mark.filterwarnings("ignore:A training batch is left out")
def test_a_batch_that_is_dropped_does_not_count_for_its_window(way: str) -> None:
    task = Leaving(way, {1})
    trainer = run(task, 4)
    parts = split(tokens(), [8] * 4)
    assert_same(task.gradients[0], by_hand([parts[0], *parts[2:]]))
    assert (trainer.progress.steps, trainer.progress.skipped_batches, trainer.progress.skipped_steps) == (1, 1, 0)
    assert trainer.progress.micro_batches == 4


@pytest.mark.holds("R28")
@pytest.mark.parametrize("way", ["class", "NaN"])
@pytest.mark.filterwarnings("ignore:A training batch is left out")
def test_its_whole_window_can_be_dropped(way: str) -> None:
    task = Leaving(way, {1})
    trainer = run(task, 2, on_skip="skip_all", on_nonfinite="skip_all")
    assert_same(torch.stack(task.gradients), by_hand(split(tokens(), [8] * 4)[2:])[None])
    assert (trainer.progress.steps, trainer.progress.skipped_batches, trainer.progress.skipped_steps) == (1, 1, 1)


@pytest.mark.holds("R28")
@pytest.mark.parametrize("way", ["class", "NaN"])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.filterwarnings("ignore:A training batch is left out")
def test_a_window_of_dropped_batches_takes_no_step(way: str, window: int) -> None:
    class Scheduled(Leaving):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    task = Scheduled(way, {0, 1, 2, 3})
    before = weights(task)
    trainer = run(task, window)
    assert equal(weights(task), before)
    assert trainer.progress.steps == 0
    assert trainer.progress.skipped_batches == 4
    assert trainer.progress.skipped_steps == 4 // window
    assert trainer.lrs == [0.1]
    assert not trainer.optimizers[0].state


@pytest.mark.holds("R28")
@pytest.mark.parametrize("window", [1, 2])
def test_by_default_a_loss_that_is_not_finite_stops_the_run(window: int) -> None:
    task = Leaving("NaN", {2}, lr=0.1)
    with pytest.raises(
        NonFiniteError, match=r"Training stopped because the loss is nan\. Why: .*Fix: .*Accumulation\(on_nonfinite="
    ):
        run(task, window, on_nonfinite="raise")
    assert all(torch.isfinite(each).all() for each in weights(task))


@pytest.mark.holds("R28")
def test_skipping_can_be_forbidden() -> None:
    with pytest.raises(NonFiniteError, match=r"because training_step returned Skip \(nothing to learn\)\..*on_skip"):
        run(Leaving("instance", {1}), 1, on_skip="raise")


@pytest.mark.holds("R28")
@pytest.mark.parametrize("way", ["None", "NaN"])
@pytest.mark.filterwarnings("ignore:A training batch is left out")
def test_too_many_in_a_row_stop_the_run(way: str) -> None:
    sizes = [1] * 32
    run(Leaving(way, {*range(0, 32, 2)}), 1, sizes, max_consecutive_skips=2)
    with pytest.raises(NonFiniteError, match=r"3 training batches in a row were left out: .*Fix: look at these"):
        run(Leaving(way, {5, 6, 7}), 1, sizes, max_consecutive_skips=3)


@pytest.mark.holds("R28")
def test_skips_are_told_of_once_counted_and_logged() -> None:
    class Recorder(Logger):
        name = "recorder"

        def __init__(self):
            self.rows = []

        def log_metrics(self, metrics, *, step, epoch):
            self.rows.append({name: value for name, value in metrics.items() if name.startswith("skipped")})

    class Task(Line):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    recorder = Recorder()
    trainer = quiet(max_epochs=1, logger=recorder, log_every_n_steps=1)
    with pytest.warns(
        TaskloomWarning, match=r"A training batch is left out because training_step returned None"
    ) as told:
        trainer.fit(Task(), loader())
    assert len(told) == 1
    assert [row for row in recorder.rows if row][-1] == {"skipped_batches": 2, "skipped_steps": 2}
    assert trainer.progress.skipped_batches == 2


@pytest.mark.holds("R28")
@pytest.mark.filterwarnings("ignore:A training batch is left out")
def test_what_is_left_out_is_not_in_the_mean_of_the_losses() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch) * 0 + batch_idx
            return loss * float("nan") if batch_idx == 3 else loss

    policy = Accumulation(on_nonfinite="drop_and_reweight")
    assert quiet(max_epochs=1, accumulate_grad_batches=policy).fit(Task(), loader()).training_loss == 1.0


@pytest.mark.holds("R28", "TM-24")
@pytest.mark.filterwarnings("ignore:A training batch is left out")
def test_a_closure_may_have_nothing_to_learn() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else self.loss(batch)

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    trainer = quiet(max_epochs=1)
    result = trainer.fit(Task(), loader())
    assert result.steps == 3
    assert trainer.progress.skipped_batches == 1
    assert trainer.progress.skipped_steps == 1
