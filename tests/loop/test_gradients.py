"""What happens between the backward pass and the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop.tiny import At, Line, equal, loader, quiet, weights
from torch import Tensor

from taskloom import Accumulation, DebugOptions, GradientClipping
from taskloom.core.errors import NonFiniteError
from taskloom.precision import MixedPrecision
from taskloom.precision.amp import LossScaling


class Noting(Line):
    """Notes the gradients before clipping and when the optimizer steps."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.before: list[Tensor] = []
        self.stepped_on: list[Tensor] = []

    def gradient(self) -> Tensor:
        return torch.cat([each.grad.flatten().clone() for each in self.parameters()])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.before.append(self.gradient())

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        optimizer.register_step_pre_hook(lambda *_: self.stepped_on.append(self.gradient()))
        return optimizer


@pytest.mark.holds("GR-08", "TM-22")
@pytest.mark.parametrize("window", [1, 2])
def test_clipping_by_norm(window: int) -> None:
    task = Noting()
    quiet(max_epochs=1, gradient_clip_val=0.5, accumulate_grad_batches=window).fit(task, loader())
    assert len(task.before) == 4 // window
    for before, after in zip(task.before, task.stepped_on, strict=True):
        assert before.norm() > 0.5
        torch.testing.assert_close(after, before * 0.5 / before.norm(), rtol=1e-5, atol=0.0)


@pytest.mark.holds("GR-08")
def test_clipping_by_value() -> None:
    task = Noting()
    quiet(max_epochs=1, gradient_clip_val=GradientClipping(max_value=0.25)).fit(task, loader())
    assert (task.before[0].abs() > 0.25).any()
    for before, after in zip(task.before, task.stepped_on, strict=True):
        assert torch.equal(after, before.clamp(-0.25, 0.25))


@pytest.mark.holds("GR-08")
@pytest.mark.parametrize(
    ("clipping", "expected"),
    [(0.5, (0.5, "norm")), (GradientClipping(max_value=0.1), (0.1, "value")), (None, (None, "norm"))],
)
def test_clipping_by_a_rule_of_ones_own(clipping: Any, expected: Any) -> None:
    got: list[Any] = []

    class Task(Noting):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            got.append((gradient_clip_val, gradient_clip_algorithm))
            self.clip_gradients(optimizer, 0.125, "value")

    task = Task()
    quiet(max_steps=1, gradient_clip_val=clipping).fit(task, loader())
    assert got == [expected]
    assert torch.equal(task.stepped_on[0], task.before[0].clamp(-0.125, 0.125))


@pytest.mark.holds("GR-08")
def test_an_override_that_calls_the_default_clips_as_the_trainer_says() -> None:
    class Task(Noting):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    task = Task()
    trainer = quiet(max_steps=1, gradient_clip_val=GradientClipping(max_norm=0.5, log_norm=True))
    result = trainer.fit(task, loader())
    assert task.stepped_on[0].norm() == pytest.approx(0.5, rel=1e-5)
    assert result.metrics["grad_norm"] == pytest.approx(float(task.before[0].norm()), rel=1e-6)


def test_an_unknown_algorithm_of_clipping() -> None:
    class Task(Line):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, 1.0, "size")

    with pytest.raises(ValueError, match=r"Gradients are clipped by 'norm' or by 'value'\. Got: 'size'"):
        quiet(max_steps=1).fit(Task(), loader())


@pytest.mark.holds("GR-09")
def test_the_norm_is_logged_before_clipping(tmp_path: Any) -> None:
    task = Noting()
    policy = GradientClipping(max_norm=0.5, log_norm=True)
    result = quiet(max_epochs=1, gradient_clip_val=policy, logger=True, log_every_n_steps=1, run_dir=tmp_path).fit(
        task, loader()
    )
    header, *rows = (result.run_folder / "metrics.csv").read_text().split()
    place = header.split(",").index("grad_norm")
    assert [float(row.split(",")[place]) for row in rows] == pytest.approx(
        [float(each.norm()) for each in task.before], rel=1e-6
    )


@pytest.mark.holds("GR-09")
@pytest.mark.parametrize("clipping", [{"max_norm": 1.0}, {"max_value": 1.0}, {}])
def test_a_norm_that_is_not_finite_is_an_error_before_any_gradient_changes(clipping: dict[str, float]) -> None:
    class Task(Noting):
        def on_before_optimizer_step(self, optimizer):
            self.layer.bias.grad.fill_(float("inf"))
            super().on_before_optimizer_step(optimizer)

    task = Task()
    before = weights(task)
    policy = GradientClipping(error_if_nonfinite=True, **clipping)
    with pytest.raises(NonFiniteError, match=r"The gradient norm is inf\. Got: .*layer\.bias.*Fix:"):
        quiet(max_epochs=1, gradient_clip_val=policy).fit(task, loader())
    assert torch.equal(task.gradient(), task.before[0])
    assert equal(weights(task), before)


@pytest.mark.holds("GR-12")
def test_anomaly_detection_names_the_operation() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            return (self.layer(batch[0]) * 0).sqrt().sum() * 0 + super().training_step(batch, batch_idx)

    options = DebugOptions(detect_anomaly=True)
    with (
        pytest.warns(UserWarning, match="Error detected in SqrtBackward0"),
        pytest.raises(RuntimeError, match="'SqrtBackward0' returned nan values"),
    ):
        quiet(max_steps=1, debug=options).fit(Task(), loader())
    assert not torch.is_anomaly_enabled()


@pytest.mark.holds("GR-12")
@pytest.mark.parametrize("manual", [False, True])
def test_debug_names_the_parameter_whose_gradient_is_not_finite(manual: bool) -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.layer.weight.register_hook(lambda gradient: gradient * float("nan"))
            if manual:
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

    task = Task()
    task.automatic_optimization = not manual
    with pytest.raises(NonFiniteError, match=r"The gradient of 'layer\.weight' is not finite"):
        quiet(max_steps=1, debug=DebugOptions(check_gradients=True)).fit(task, loader())


def scaled(init_scale: float = 1024.0) -> MixedPrecision:
    return MixedPrecision("16", LossScaling(init_scale=init_scale, growth_interval=1000))


@pytest.mark.holds("GR-10", "TM-22")
@pytest.mark.parametrize("window", [1, 2])
def test_gradients_have_their_true_size_before_the_step(window: int) -> None:
    full, half = Noting(lr=0.0), Noting(lr=0.0)
    half.load_state_dict(full.state_dict())
    scaled_ones: list[Tensor] = []
    quiet(max_epochs=1, accumulate_grad_batches=window).fit(full, loader())
    quiet(
        At(on_after_backward=lambda _, task: scaled_ones.append(task.gradient())),
        max_epochs=1,
        precision=scaled(),
        accumulate_grad_batches=window,
    ).fit(half, loader())
    for one, other in zip(full.before, half.before, strict=True):
        torch.testing.assert_close(other, one, rtol=2e-2, atol=1e-2)
    assert scaled_ones[0].norm() > 100 * half.before[0].norm()


@pytest.mark.holds("GR-13")
@pytest.mark.parametrize("kind", ["automatic", "closure", "manual"])
def test_an_overflow_skips_the_step_and_the_schedulers(kind: str) -> None:
    skipped: list[bool] = []

    class Task(Line):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            if batch_idx == 1:
                loss = loss * 1e38 * 1e3
            if kind == "manual":
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            skipped.append(self.optimizers().step_was_skipped)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    class Closing(Task):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)

    task = (Closing if kind == "closure" else Task)()
    task.automatic_optimization = kind != "manual"
    trainer = quiet(max_epochs=1, precision=scaled())
    result = trainer.fit(task, loader())
    assert skipped == [False, True, False, False]
    assert result.steps == 3
    assert trainer.progress.skipped_steps == 1
    assert trainer.progress.optimizer_steps == {"SGD": 3}
    assert trainer.precision.scaler.get_scale() == 512.0
    assert all(torch.isfinite(each).all() for each in weights(task))
    if kind != "manual":
        assert trainer.lrs == [0.01 * 0.5**3]


@pytest.mark.holds("R28", "GR-13")
def test_overflows_without_end_stop_the_run() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) * float("nan")

    trainer = quiet(max_epochs=9, precision=scaled(), accumulate_grad_batches=Accumulation(max_consecutive_skips=6))
    with pytest.raises(NonFiniteError, match=r"6 optimizer steps in a row were skipped .* overflowed\..*Fix: look"):
        trainer.fit(Task(), loader())
    assert trainer.progress.steps == 0


@pytest.mark.holds("R46", "TM-27")
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "16-mixed"])
def test_a_task_written_both_ways_ends_with_the_same_bytes(precision: str) -> None:
    class Manual(Line):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            if batch_idx % 3 == 0:
                optimizer.zero_grad()
            self.manual_backward(self.loss(batch) / 3)
            if batch_idx % 3 == 2:
                self.clip_gradients(optimizer, 0.5)
                optimizer.step()

    one, other = Line(), Manual()
    other.load_state_dict(one.state_dict())
    policy = scaled if precision == "16-mixed" else lambda: precision
    first = quiet(max_epochs=2, precision=policy(), gradient_clip_val=0.5, accumulate_grad_batches=3).fit(
        one, loader(12)
    )
    second = quiet(max_epochs=2, precision=policy()).fit(other, loader(12))
    assert first.steps == second.steps == 4
    assert equal(weights(one), weights(other))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gradient_clip_val": 1.0}, r"gradient_clip_val has no effect on Manual.*Fix: .*self\.clip_gradients"),
        ({"accumulate_grad_batches": 2}, r"accumulate_grad_batches has no effect on Manual.*Fix: "),
    ],
)
def test_what_manual_optimisation_does_itself_is_refused(arguments: dict[str, Any], match: str) -> None:
    class Manual(Line):
        automatic_optimization = False

    with pytest.raises(ValueError, match=match):
        quiet(max_steps=1, **arguments).fit(Manual(), loader())
