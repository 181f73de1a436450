"""Tasks that replace a part of a step, do it by hand, or leave it to an optimizer that evaluates the loss itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop.tiny import At, Line, equal, loader, quiet, samples, weights
from torch.nn import functional as F

from taskloom import Accumulation, Loss
from taskloom.core.errors import TaskloomWarning
from taskloom.loggers import Logger


@pytest.mark.holds("TM-23")
def test_backward_can_be_replaced() -> None:
    class Task(Line):
        def backward(self, loss, *args, **kwargs):
            got.append(loss.item())
            super().backward(loss * 2, retain_graph=True)

    got: list[float] = []
    task, plain = Task(), Line(lr=0.02)
    plain.load_state_dict(task.state_dict())
    quiet(max_epochs=1).fit(task, loader())
    quiet(max_epochs=1).fit(plain, loader())
    assert len(got) == 4
    assert equal(weights(task), weights(plain))


@pytest.mark.holds("TM-24")
def test_optimizer_step_can_be_replaced() -> None:
    class Task(Line):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            calls.append((epoch, batch_idx))
            for group in optimizer.param_groups:
                group["lr"] = 0.001 * (1 + batch_idx)
            optimizer.step(closure=optimizer_closure)

    calls: list[tuple[int, int]] = []
    task = Task()
    trainer = quiet(max_epochs=2, accumulate_grad_batches=2)
    result = trainer.fit(task, loader(10))
    assert calls == [(0, 1), (0, 3), (0, 4), (1, 1), (1, 3), (1, 4)]
    assert result.steps == 6
    assert trainer.lrs == [0.005]
    assert task.seen == [*range(5)] * 2


@pytest.mark.holds("TM-24", "GR-01")
@pytest.mark.parametrize("window", [1, 2, 3])
def test_an_override_that_does_the_usual_changes_no_bit(window: int) -> None:
    class Task(Line):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    task, plain = Task(), Line()
    plain.load_state_dict(task.state_dict())
    both = {"max_epochs": 2, "accumulate_grad_batches": window, "gradient_clip_val": 0.5}
    first = quiet(**both).fit(task, loader(10))
    second = quiet(**both).fit(plain, loader(10))
    assert equal(weights(task), weights(plain))
    assert first.training_loss == second.training_loss
    assert first.steps == second.steps


@pytest.mark.holds("TM-24")
def test_stepping_every_other_batch() -> None:
    class Task(Line):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    trainer = quiet(max_epochs=1)
    assert trainer.fit(Task(), loader()).steps == 2
    assert trainer.progress.skipped_steps == 2


@pytest.mark.holds("TM-24")
def test_a_closure_must_be_called() -> None:
    class Task(Line):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            pass

    with pytest.raises(RuntimeError, match=r"optimizer_step did not call its closure\. Why: .*Fix: call optimizer"):
        quiet(max_steps=1).fit(Task(), loader())


@pytest.mark.holds("TM-24", "GR-01")
@pytest.mark.parametrize("batch_size", [16, 4, 5])
def test_lbfgs_minimises_the_loss_of_the_whole_window(batch_size: int) -> None:
    """The least-squares solution in a few steps, whether the window is one batch or several of unequal size."""

    class Task(Line):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    torch.manual_seed(3)
    task, data = Task(), loader(16, batch_size)
    trainer = quiet(max_epochs=2, accumulate_grad_batches=len(data), precision="64-true")
    result = trainer.fit(task, data)
    x, y = samples(16).tensors
    design = torch.cat([x, torch.ones(16, 1)], 1).double()
    solution = torch.linalg.lstsq(design, y.double()).solution.flatten()
    found = torch.cat([task.layer.weight.flatten(), task.layer.bias]).detach()
    torch.testing.assert_close(found, solution, rtol=1e-4, atol=1e-5)
    assert result.steps == 2
    assert trainer.progress.micro_batches == 2 * len(data)
    assert len(task.seen) > trainer.progress.micro_batches


@pytest.mark.holds("TM-24", "R2")
@pytest.mark.parametrize("kind", ["mean", "Loss"])
def test_a_closure_returns_the_mean_loss_of_its_window(kind: str) -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            total = self.loss(batch) * len(batch[0])
            return Loss(total, len(batch[0])) if kind == "Loss" else total / len(batch[0])

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            got.extend([optimizer_closure().item(), optimizer_closure().item()])
            optimizer.step()

    got: list[float] = []
    task = Task(lr=0.0)
    quiet(max_epochs=1, accumulate_grad_batches=3).fit(task, loader(16, 4))
    first, second = (task.loss(samples(16)[part]).item() for part in (slice(0, 12), slice(12, 16)))
    assert got == pytest.approx([first, first, second, second], rel=1e-5)


@pytest.mark.holds("TM-24", "R28")
@pytest.mark.filterwarnings("ignore:A training batch is left out")
def test_evaluating_again_counts_no_skip_twice() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) if batch_idx % 2 else None

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer_closure()
            optimizer.step(closure=optimizer_closure)

    trainer = quiet(max_epochs=1, accumulate_grad_batches=Accumulation(2, max_consecutive_skips=2))
    assert trainer.fit(Task(), loader()).steps == 2
    assert trainer.progress.skipped_batches == 2


@pytest.mark.holds("TM-24")
def test_evaluating_again_counts_no_loss_twice() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch_idx)
            return self.loss(batch) * 0 + len(self.seen)

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer_closure()
            optimizer.step(closure=optimizer_closure)

    task = Task()
    assert quiet(max_epochs=1).fit(task, loader(4)).training_loss == (1 + 3) / 2
    assert task.seen == [0, 0, 1, 1]


@pytest.mark.holds("TM-24")
def test_zeroing_can_be_replaced() -> None:
    class Task(Line):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            calls.append((epoch, batch_idx))
            optimizer.zero_grad(set_to_none=False)

    calls: list[tuple[int, int]] = []
    quiet(max_epochs=1, accumulate_grad_batches=2).fit(Task(), loader(10))
    assert calls == [(0, 0), (0, 2), (0, 4)]


@pytest.mark.holds("TM-24")
def test_an_optimizer_that_zeroes_in_its_own_way() -> None:
    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            calls.append(set_to_none)
            super().zero_grad(set_to_none)

    class Task(Line):
        def configure_optimizers(self):
            return Own(self.parameters(), lr=0.01)

    calls: list[bool] = []
    quiet(max_epochs=1).fit(Task(), loader())
    assert calls == [True] * 4


@pytest.mark.holds("TM-25")
def test_stepping_a_scheduler_can_be_replaced() -> None:
    class Task(Line):
        def lr_scheduler_step(self, scheduler, metric):
            got.append((type(scheduler).__name__, metric))

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", 0.5)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return [optimizer], [
                torch.optim.lr_scheduler.StepLR(optimizer, 1),
                {"scheduler": plateau, "monitor": "val/loss"},
            ]

    got: list[Any] = []
    quiet(max_epochs=2).fit(Task(), loader(), loader())
    assert got == [("StepLR", None), ("ReduceLROnPlateau", 0.5)] * 2


class Adversaries(Line):
    """A GAN in small: two optimizers, of which the second steps every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = torch.nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch_idx)
        own, critic = self.optimizers()
        for optimizer, layer in ((own, self.layer), (critic, self.critic)):
            if optimizer is critic and batch_idx % 2:
                continue
            with optimizer.toggle_model():
                asked = {name.split(".")[0] for name, each in self.named_parameters() if each.requires_grad}
                assert asked == {"layer" if optimizer is own else "critic"}
                loss = F.mse_loss(layer(batch[0]), batch[1])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            self.log(f"loss/{optimizer.name}", loss)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.layer.parameters(), lr=0.01),
            torch.optim.SGD(self.critic.parameters(), lr=0.01),
        )


class Recorder(Logger):
    name = "recorder"

    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []

    def log_metrics(self, metrics: Any, *, step: int, epoch: int) -> None:
        self.rows.append((step, epoch))


class Second(Recorder):
    name = "second"


@pytest.mark.holds("R27", "OS-17", "TM-27", "TM-28", "TM-29")
def test_two_optimizers_and_max_steps_count_batches() -> None:
    task, recorders = Adversaries(), [Recorder(), Second()]
    trainer = quiet(max_steps=10, logger=recorders, log_every_n_steps=3)
    result = trainer.fit(task, loader(16))
    assert len(task.seen) == 10
    assert result.steps == trainer.global_step == trainer.progress.micro_batches == 10
    assert trainer.progress.optimizer_steps == {"SGD": 10, "SGD-1": 5}
    assert recorders[0].rows == recorders[1].rows == [(3, 0), (6, 0), (8, 0), (9, 1), (10, 1)]
    assert all(each.requires_grad for each in task.parameters())


@pytest.mark.holds("R27")
def test_counters_of_their_own() -> None:
    class Task(Line):
        def num_tokens(self, batch):
            return 7 * len(batch[0])

    trainer = quiet(max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(Task(), loader(9))
    progress = trainer.progress
    assert (progress.epochs, progress.micro_batches, progress.steps) == (2, 10, 6)
    assert (progress.samples, progress.tokens) == (18, 126)
    assert progress.optimizer_steps == {"SGD": 6}
    assert progress.seconds > 0


@pytest.mark.holds("OS-17")
def test_two_optimizers_need_manual_optimisation() -> None:
    task = Adversaries()
    task.automatic_optimization = True
    with pytest.raises(ValueError, match=r"Adversaries has 2 optimizers and leaves stepping to the loop\..*Fix: set"):
        quiet(max_steps=1).fit(task, loader())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda task: task.optimizers().step(), r"optimizer\.step\(\) was called in automatic optimisation.*Fix:"),
        (lambda task: task.manual_backward(task.layer.bias.sum()), r"manual_backward was called in automatic.*Fix:"),
    ],
)
def test_manual_calls_in_automatic_optimisation(call: Any, match: str) -> None:
    with pytest.raises(RuntimeError, match=match):
        quiet(At(on_train_batch_start=lambda _, task: call(task)), max_steps=1).fit(Line(), loader())


@pytest.mark.holds("TM-24", "TM-27")
def test_lbfgs_in_manual_optimisation() -> None:
    class Task(Line):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.evaluations = 0

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()

            def closure():
                self.evaluations += 1
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)

        def on_before_optimizer_step(self, optimizer):
            assert all(each.grad is not None for each in self.parameters())

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=5)

    task = Task()
    assert quiet(max_epochs=1).fit(task, loader()).steps == 4
    assert task.evaluations > 4


@pytest.mark.holds("TM-13")
def test_training_without_an_optimizer() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            self.log("mean", batch[0].mean())

        def configure_optimizers(self):
            return None

    trainer = quiet(max_steps=6, accumulate_grad_batches=Accumulation(max_consecutive_skips=1))
    with pytest.warns(TaskloomWarning, match="Task trains without an optimizer, so nothing learns"):
        result = trainer.fit(Task(), loader())
    assert result.steps == 6
    assert "mean" in result.metrics
