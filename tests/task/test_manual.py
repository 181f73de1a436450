"""Manual optimisation, and optimizers as a task sees them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from task.samples import Line, loader, make_trainer
from torch import nn

from taskloom import TaskModule
from taskloom.optim import TaskOptimizer


class Two(TaskModule):
    """Two layers with an optimizer each, and a frozen bias in both."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.one, self.other = nn.Linear(2, 1), nn.Linear(2, 1)
        for layer in self.children():
            layer.bias.requires_grad = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        for layer, optimizer in zip((self.one, self.other), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(layer(batch).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.one, self.other)]

    def learning(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}


ALL = {"one.weight", "other.weight"}


@pytest.mark.holds("TM-27")
def test_a_task_written_both_ways_learns_the_same():
    class Manual(Line):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    automatic, manual = Line(), Manual()
    manual.load_state_dict(automatic.state_dict())
    for task in (automatic, manual):
        make_trainer(max_epochs=2).fit(task, loader())
    torch.testing.assert_close(manual.state_dict(), automatic.state_dict(), rtol=0, atol=0)


@pytest.mark.holds("TM-27")
def test_each_optimizer_steps_when_it_is_told_and_a_batch_is_one_step():
    task, trainer = Two(), make_trainer()
    trainer.fit(task, loader(3))
    assert trainer.progress.optimizer_steps == {"SGD": 3, "SGD-1": 3}
    assert trainer.global_step == 3


@pytest.mark.holds("TM-27")
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            lambda task: task.manual_backward(task(torch.ones(1, 2)).sum()),
            "manual_backward was called in automatic opt",
        ),
        (lambda task: task.optimizers().step(), r"optimizer.step\(\) was called in automatic optimisation"),
    ],
)
def test_what_is_manual_is_refused_in_automatic_optimisation(wrong, text):
    class Mixes(Line):
        def training_step(self, batch, batch_idx):
            wrong(self)
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match=text):
        make_trainer().fit(Mixes(), loader())


@pytest.mark.holds("TM-29")
def test_one_optimizer_comes_by_itself_and_several_in_a_list():
    found = {}

    class Looks(Line):
        def configure_optimizers(self):
            return {
                "optimizer": (optimizer := torch.optim.SGD(self.parameters(), lr=0.1)),
                "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
            }

        def on_train_start(self):
            found["one"], found["scheduler"] = self.optimizers(), self.lr_schedulers()
            found["bare"] = self.optimizers(use_pl_optimizer=False)

    class LooksAtTwo(Two):
        def on_train_start(self):
            found["two"], found["none"] = self.optimizers(), self.lr_schedulers()

    trainer = make_trainer()
    trainer.fit(Looks(), loader())
    assert isinstance(found["one"], TaskOptimizer)
    assert found["one"].optimizer is found["bare"] is trainer.optimizers[0]
    assert isinstance(found["scheduler"], torch.optim.lr_scheduler.ConstantLR)
    make_trainer().fit(LooksAtTwo(), loader())
    assert [optimizer.name for optimizer in found["two"]] == ["SGD", "SGD-1"]
    assert found["none"] is None


@pytest.mark.holds("TM-28")
@pytest.mark.parametrize("bare", [False, True])
def test_a_toggled_optimizers_parameters_alone_learn_and_all_are_restored(bare):
    seen = []

    class Toggles(Two):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers(use_pl_optimizer=not bare):
                self.toggle_optimizer(optimizer)
                seen.append(self.learning())
                self.untoggle_optimizer(optimizer)
                seen.append(self.learning())

    make_trainer().fit(Toggles(), loader(1))
    assert seen == [{"one.weight"}, ALL, {"other.weight"}, ALL]


@pytest.mark.holds("TM-28")
def test_toggling_the_next_optimizer_ends_the_last_toggle():
    seen = []

    class Toggles(Two):
        def training_step(self, batch, batch_idx):
            one, other = self.optimizers()
            self.untoggle_optimizer(one)  # nothing is toggled yet
            self.toggle_optimizer(one)
            self.toggle_optimizer(other)
            seen.append(self.learning())
            self.untoggle_optimizer(other)
            seen.append(self.learning())

    make_trainer().fit(Toggles(), loader(1))
    assert seen == [{"other.weight"}, ALL]


@pytest.mark.holds("TM-28")
def test_a_toggle_for_a_block_is_undone_by_an_error():
    class Toggles(Two):
        def training_step(self, batch, batch_idx):
            with self.toggled_optimizer(self.optimizers()[0]):
                self.within = self.learning()
                raise ZeroDivisionError

    task = Toggles()
    with pytest.raises(ZeroDivisionError):
        make_trainer().fit(task, loader(1))
    assert task.within == {"one.weight"}
    assert task.learning() == ALL


@pytest.mark.holds("TM-28")
def test_a_parameter_of_two_optimizers_is_restored_as_it_was():
    task = Two()
    shared, frozen, own = task.one.weight, task.one.bias, task.other.weight
    optimizers = [torch.optim.SGD(group) for group in ([own], [shared, frozen], [shared, frozen])]
    task.attach(SimpleNamespace(optimizers=optimizers), None)  # a Trainer wants every parameter in one optimizer
    with task.toggled_optimizer(optimizers[0]):
        assert task.learning() == {"other.weight"}
    assert task.learning() == ALL
    with task.toggled_optimizer(optimizers[1]):
        assert task.learning() == {"one.weight"}
    assert task.learning() == ALL
