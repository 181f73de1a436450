"""One step uses the gradient of Σ sum / Σ weight over its actual window, however it is split."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop.tiny import At, Line, equal, loader, quiet, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from taskloom import Accumulation, Loss
from taskloom.callbacks import GradientAccumulationScheduler

SAMPLES, POSITIONS, CLASSES = 32, 6, 5
Rows = tuple[Tensor, Tensor]


def tokens() -> Rows:
    """Sequences whose labels are masked at random, so that every micro-batch has another number of tokens."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, POSITIONS, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (SAMPLES, POSITIONS), generator=generator)
    y[torch.rand(SAMPLES, POSITIONS, generator=generator) < 0.6] = -100
    return x, y


class Tokens(Line):
    """Next-token loss as a sum and its weight; notes the gradients that each step uses."""

    def __init__(self, kind: str = "tensor", lr: float = 0.0) -> None:
        super().__init__(lr)
        torch.manual_seed(7)
        self.layer = nn.Linear(4, CLASSES)
        self.double()
        self.kind = kind
        self.gradients: list[Tensor] = []

    def training_step(self, batch: Rows, batch_idx: int) -> Any:
        self.seen.append(len(batch[0]))
        return self.loss_of(batch)

    def loss_of(self, batch: Rows) -> Any:
        x, y = batch
        each = cross_entropy(self.layer(x).flatten(0, 1), y.flatten(), reduction="none")
        if self.kind == "mean":
            return each.view(len(y), -1).sum(1).mean()
        count = (y != -100).sum()
        return Loss(each.sum(), {"tensor": count, "int": int(count), "float": float(count)}[self.kind])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append(torch.cat([each.grad.flatten() for each in self.parameters()]))


def split(data: Rows, sizes: Sequence[int]) -> list[Rows]:
    return list(zip(*(part.split(list(sizes)) for part in data), strict=True))


def gradients(sizes: Sequence[int], window: int, kind: str = "tensor", data: Rows | None = None, **more: Any) -> Tensor:
    """The gradients of each step of an epoch over micro-batches of these sizes: steps × parameters."""
    task = Tokens(kind)
    trainer = quiet(max_epochs=1, precision="64-true", accumulate_grad_batches=window, **more)
    trainer.fit(task, Batches(split(data or tokens(), sizes)))
    return torch.stack(task.gradients)


class Batches:
    """A loader of given batches."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def by_hand(parts: Sequence[Rows], kind: str = "tensor") -> Tensor:
    """The gradient of one big batch."""
    task = Tokens(kind)
    loss = task.loss_of(tuple(torch.cat(each) for each in zip(*parts, strict=True)))
    (loss.mean if isinstance(loss, Loss) else loss).backward()
    return torch.cat([each.grad.flatten() for each in task.parameters()])


def assert_same(one: Tensor, other: Tensor) -> None:
    assert (one - other).norm() <= 1e-10 * other.norm()
    assert other.norm() > 0


@pytest.mark.holds("R2", "GR-01")
@pytest.mark.parametrize("kind", ["tensor", "int", "float", "mean"])
@pytest.mark.parametrize(
    "sizes",
    [[32], [8] * 4, [1] * 32, [5, 5, 5, 5, 12], [31, 1], [9, 9, 9, 5]],
    ids=["1x32", "4x8", "32x1", "uneven", "31+1", "last shorter"],
)
def test_any_split_of_a_window_has_the_gradient_of_the_big_batch(sizes: list[int], kind: str) -> None:
    assert_same(gradients(sizes, len(sizes), kind)[0], by_hand([tokens()], kind))


@pytest.mark.holds("R2", "GR-03")
@pytest.mark.parametrize("kind", ["tensor", "int", "mean"])
def test_a_short_last_window_is_weighted_by_what_it_holds(kind: str) -> None:
    data = tokens()
    sizes = [3] * 10 + [2]
    parts = split(data, sizes)
    found = gradients(sizes, 8, kind)
    assert len(found) == 2
    assert_same(found[0], by_hand(parts[:8], kind))
    assert_same(found[1], by_hand(parts[8:], kind))


@pytest.mark.holds("R2", "GR-03")
def test_five_of_eight() -> None:
    data = tuple(each[:20] for each in tokens())
    assert_same(gradients([4] * 5, 8, "tensor", data)[0], by_hand([data]))


@pytest.mark.holds("R2")
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    window=st.integers(1, 9),
    kind=st.sampled_from(["tensor", "int", "mean"]),
)
def test_any_sizes_in_any_window(sizes: list[int], window: int, kind: str) -> None:
    data = tuple(torch.cat([each, each])[: sum(sizes)] for each in tokens())
    parts = split(data, sizes)
    found = gradients(sizes, window, kind, data)
    windows = [parts[start : start + window] for start in range(0, len(parts), window)]
    assert len(found) == len(windows)
    for gradient, micro_batches in zip(found, windows, strict=True):
        if any((labels != -100).any() for _, labels in micro_batches):
            assert_same(gradient, by_hand(micro_batches, kind))
        else:
            assert not gradient.any()


@pytest.mark.holds("R2")
@pytest.mark.parametrize("kind", ["tensor", "int"])
@pytest.mark.parametrize("where", ["first", "middle", "all"])
def test_micro_batches_without_weight_count_for_nothing(where: str, kind: str) -> None:
    x, y = tokens()
    empty = {"first": slice(0, 8), "middle": slice(8, 16), "all": slice(0, 32)}[where]
    y[empty] = -100
    gradient = gradients([8] * 4, 4, kind, (x, y))[0]
    if where == "all":
        assert not gradient.any()
    else:
        keep = (y != -100).any(1)
        assert_same(gradient, by_hand([(x[keep], y[keep])]))


@pytest.mark.holds("R2")
def test_a_window_of_one_micro_batch_without_weight_leaves_zero() -> None:
    x, y = tokens()
    y[:] = -100
    assert not gradients([32], 1, "tensor", (x, y)).any()


@pytest.mark.holds("R46", "GR-01")
def test_equal_micro_batches_give_the_bits_of_the_loop_written_by_hand() -> None:
    task = Line()
    own, by_hand_loader = loader(12), loader(12)
    hand = Line()
    hand.load_state_dict(task.state_dict())
    optimizer = hand.configure_optimizers()
    for number, batch in enumerate(by_hand_loader, 1):
        (hand.loss(batch) / 3).backward()
        if number % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()
    quiet(max_epochs=1, accumulate_grad_batches=3).fit(task, own)
    assert equal(weights(task), weights(hand))


@pytest.mark.holds("GR-03")
@pytest.mark.parametrize("kind", ["automatic", "closure"])
def test_a_short_last_window_can_be_dropped(kind: str) -> None:
    class Closing(Line):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)

    task = (Line if kind == "automatic" else Closing)()
    policy = Accumulation(3, flush_last=False)
    trainer = quiet(max_epochs=2, accumulate_grad_batches=policy)
    result = trainer.fit(task, loader(8))
    assert task.seen == [0, 1, 2, 3] * 2
    assert result.steps == 2
    assert trainer.progress.skipped_steps == 2
    assert trainer.estimated_stepping_batches == 2


@pytest.mark.holds("GR-02")
@pytest.mark.parametrize("way", ["trainer", "callback", "by hand"])
def test_accumulation_changes_with_the_epoch(way: str) -> None:
    schedule = {0: 1, 1: 2, 3: 4}
    callbacks = {
        "trainer": [],
        "callback": [GradientAccumulationScheduler(schedule)],
        "by hand": [
            At(
                on_train_epoch_start=lambda trainer, _: setattr(
                    trainer, "accumulate_grad_batches", Accumulation(schedule).at_epoch(trainer.current_epoch)
                )
            )
        ],
    }[way]
    steps: list[int] = []
    trainer = quiet(
        *callbacks,
        At(on_train_epoch_end=lambda trainer, _: steps.append(trainer.global_step)),
        max_epochs=4,
        accumulate_grad_batches=schedule if way == "trainer" else 1,
    )
    trainer.fit(Line(), loader())
    assert steps == [4, 6, 8, 9]
    if way == "trainer":
        assert trainer.estimated_stepping_batches == 9


@pytest.mark.holds("GR-02")
def test_a_window_cannot_change_its_size_while_it_is_open() -> None:
    def change(trainer: Any, _: Any) -> None:
        trainer.accumulate_grad_batches = 4

    with pytest.raises(RuntimeError, match=r"cannot change within a window\..*on_train_epoch_start"):
        quiet(At(on_after_backward=change), max_epochs=1, accumulate_grad_batches=2).fit(Line(), loader())


@pytest.mark.holds("GR-14")
@pytest.mark.parametrize("hook", ["on_before_zero_grad", "on_after_backward", "on_train_batch_end"])
def test_is_accumulating_tells_whether_a_step_follows(hook: str) -> None:
    told: list[bool] = []
    watch = At(**{hook: lambda trainer, _: told.append(trainer.is_accumulating)})
    quiet(watch, max_epochs=1, accumulate_grad_batches=2).fit(Line(), loader(10))
    expected = [True, False, True, False, False]
    assert told == (expected[::2] if hook == "on_before_zero_grad" else expected)


@pytest.mark.holds("R2")
def test_activations_do_not_outlive_their_micro_batch() -> None:
    alive: list[int] = []

    class Task(Line):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[weakref.ref[Tensor]] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            alive.append(sum(each() is not None for each in self.kept))
            hidden = self.layer(batch[0])
            self.kept.append(weakref.ref(hidden))
            return {"loss": (hidden - batch[1]).square().mean(), "hidden": hidden}

    end = At(on_train_batch_end=lambda *_: None)
    quiet(end, max_epochs=1, accumulate_grad_batches=4).fit(Task(), loader(16))
    assert alive == [0] * 8


@pytest.mark.holds("R2")
def test_a_window_holds_losses_of_one_kind() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            return Loss(loss * 2, 2) if batch_idx else loss

    with pytest.raises(TypeError, match=r"A window holds plain tensors and Loss\(sum, weight\)\. Why: .*Fix: return"):
        quiet(max_epochs=1, accumulate_grad_batches=2).fit(Task(), loader())


def test_a_negative_weight_is_refused() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            return Loss(self.loss(batch), -2)

    for window in (1, 2):
        with pytest.raises(ValueError, match=r"The weight of a Loss is negative\. Got: -2"):
            quiet(max_epochs=1, accumulate_grad_batches=window).fit(Task(), loader())


def test_samples_that_cannot_be_counted_are_told_of() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            return self.loss(batch["rows"])

    rows = [{"rows": batch, "other": torch.zeros(7)} for batch in loader()]
    with pytest.warns(UserWarning, match="number of samples cannot be read .* every micro-batch of a window counts"):
        quiet(max_epochs=1, accumulate_grad_batches=2).fit(Task(), Batches(rows))
