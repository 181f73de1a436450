from __future__ import annotations

import copy
import pickle
import threading
from argparse import Namespace
from dataclasses import dataclass

import pytest
from torch import nn

from taskloom import DataModule, TaskloomWarning, TaskModule
from taskloom.core.hparams import Hyperparameters


class Base(TaskModule):
    def __init__(self, width: int, *, depth: int = 2, **rest):
        super().__init__()
        self.save_hyperparameters()


class Derived(Base):
    def __init__(self, lr: float = 0.1, width: int = 8, **rest):
        super().__init__(width=width * 2, **rest)


class Saving(TaskModule):
    """Hands its arguments to save_hyperparameters."""

    def __init__(self, a=1, b="two", *, names=(), ignore=()):
        super().__init__()
        self.save_hyperparameters(*names, ignore=ignore)


@pytest.mark.holds("TM-30")
def test_arguments_of_a_constructor_with_their_defaults_and_keywords():
    task = Base(4, dropout=0.5)
    assert task.hparams == {"width": 4, "depth": 2, "dropout": 0.5}
    assert task.hparams.width == task.hparams["width"] == 4


@pytest.mark.holds("TM-30")
def test_of_a_subclass_chain_the_outer_arguments_win():
    assert Derived(width=3, depth=5).hparams == {"width": 3, "depth": 5, "lr": 0.1}


@pytest.mark.holds("TM-30")
@pytest.mark.parametrize(
    ("names", "ignore", "saved"),
    [
        ((), (), {"a": 1, "b": "two", "names": (), "ignore": ()}),
        (("a",), (), {"a": 1}),
        (("a", "b"), "b", {"a": 1}),
        (({"x": 1, "y": 2},), ["y"], {"x": 1}),
        ((Namespace(x=1),), (), {"x": 1}),
    ],
)
def test_which_arguments_are_saved(names, ignore, saved):
    assert Saving(names=names, ignore=ignore).hparams == saved


@pytest.mark.holds("TM-30")
def test_a_dataclass_of_hyperparameters():
    @dataclass
    class Config:
        lr: float = 0.1

    assert Saving(names=(Config(),)).hparams == {"lr": 0.1}


def test_several_calls_add_up():
    class Twice(TaskModule):
        def __init__(self, a, b):
            super().__init__()
            self.save_hyperparameters("a")
            self.save_hyperparameters({"c": 3}, logger=False)

    task = Twice(1, 2)
    assert task.hparams == {"a": 1, "c": 3}
    assert not task.logs_hparams


@pytest.mark.holds("TM-30")
def test_what_was_saved_first_is_kept_beside_what_is_changed():
    task = Saving(a=[1])
    task.hparams.a.append(2)
    task.hparams.lr = 0.5
    del task.hparams["b"]
    assert task.hparams_initial["a"] == [1]
    assert "lr" not in task.hparams_initial
    assert task.hparams_initial.b == "two"


def test_a_data_module_has_them_too():
    class Data(DataModule):
        def __init__(self, batch_size=4):
            self.save_hyperparameters()

    assert Data(8).hparams == {"batch_size": 8}
    assert DataModule().hparams == {}


def test_a_value_that_cannot_be_copied_is_shared():
    lock = threading.Lock()
    assert Saving(a=lock).hparams_initial.a is lock


def test_a_module_among_them_is_warned_about():
    with pytest.warns(
        TaskloomWarning, match=r"The hyper-parameter 'a' of Saving is a module.*ignore=\['a'\]"
    ) as caught:
        task = Saving(a=nn.Linear(1, 1))
    assert caught[0].filename == __file__
    assert task.hparams_initial.a is task.hparams.a


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        (("aa",), ValueError, r"Saving.__init__ has no argument 'aa' to save.*Did you mean 'a'\?"),
        ((3,), TypeError, "given by argument names or as one mapping, namespace or dataclass. Got: 3"),
    ],
)
def test_a_mistake_says_what_to_write(names, error, text):
    with pytest.raises(error, match=text):
        Saving(names=names)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_they_can_be_copied(duplicate):
    copied = duplicate(Hyperparameters(lr=0.1))
    assert type(copied) is Hyperparameters
    assert copied.lr == 0.1


def test_an_unknown_name_is_explained():
    with pytest.raises(AttributeError, match=r"There is no hyper-parameter 'learning'.*Did you mean 'learning_rate'\?"):
        _ = Hyperparameters(learning_rate=0.1).learning
    hparams = Hyperparameters(lr=1)
    del hparams.lr
    assert hparams == {}
