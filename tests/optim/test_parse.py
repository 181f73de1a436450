"""Every documented return shape of `configure_optimizers`, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

from taskloom.optim import OptimizerSetup, SchedulerConfig, parse_optimizers

SGD, ADAM = torch.optim.SGD, torch.optim.Adam


def parameter() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(1))]


@pytest.fixture
def sgd():
    return SGD(parameter(), lr=0.1)


@pytest.fixture
def adam():
    return ADAM(parameter(), lr=0.1)


def configs(setup: OptimizerSetup) -> list[tuple[type, str, int, str | None, bool, str | None, bool]]:
    return [
        (
            type(each.scheduler),
            each.interval,
            each.frequency,
            each.monitor,
            each.strict,
            each.name,
            each.reduce_on_plateau,
        )
        for each in setup.schedulers
    ]


DEFAULT = ("epoch", 1, None, True, None, False)


def test_nothing():
    setup = parse_optimizers(None)
    assert (setup.optimizers, setup.names, setup.schedulers) == ([], [], [])


@pytest.mark.holds("OS-05")
def test_one_optimizer(sgd):
    setup = parse_optimizers(sgd)
    assert setup.optimizers == [sgd]
    assert setup.names == ["SGD"]


@pytest.mark.holds("OS-17")
@pytest.mark.parametrize("kind", [list, tuple])
def test_several_optimizers_keep_their_order(sgd, adam, kind):
    other = SGD(parameter(), lr=1.0)
    setup = parse_optimizers(kind([sgd, adam, other]))
    assert setup.optimizers == [sgd, adam, other]
    assert setup.names == ["SGD", "Adam", "SGD-1"]


@pytest.mark.holds("OS-05", "OS-17")
def test_two_lists(sgd, adam):
    step = StepLR(sgd, 1)
    plain = parse_optimizers(([sgd, adam], [step, {"scheduler": CosineAnnealingLR(adam, 5), "interval": "step"}]))
    assert plain.optimizers == [sgd, adam]
    assert configs(plain) == [(StepLR, *DEFAULT), (CosineAnnealingLR, "step", 1, None, True, None, False)]
    assert plain.schedulers[0].scheduler is step
    assert parse_optimizers([[sgd], [step]]).optimizers == [sgd]
    assert parse_optimizers(([sgd], [])).schedulers == []


@pytest.mark.holds("OS-18")
def test_a_dict_with_a_bare_scheduler(sgd):
    assert parse_optimizers({"optimizer": sgd}).schedulers == []
    assert parse_optimizers({"optimizer": sgd, "lr_scheduler": None}).schedulers == []
    assert configs(parse_optimizers({"optimizer": sgd, "lr_scheduler": StepLR(sgd, 1)})) == [(StepLR, *DEFAULT)]


@pytest.mark.holds("OS-18")
def test_every_key_of_a_schedulers_dict(sgd):
    scheduler = {
        "scheduler": StepLR(sgd, 1),
        "interval": "step",
        "frequency": 3,
        "monitor": "val/loss",
        "strict": False,
        "name": "rate",
        "reduce_on_plateau": True,
    }
    setup = parse_optimizers({"optimizer": sgd, "lr_scheduler": scheduler})
    assert configs(setup) == [(StepLR, "step", 3, "val/loss", False, "rate", True)]


@pytest.mark.holds("OS-18")
def test_the_metric_of_a_plateau_stands_in_either_dict(sgd):
    scheduler = ReduceLROnPlateau(sgd)
    expected = [(ReduceLROnPlateau, "epoch", 1, "val/loss", True, None, True)]
    inner = {"optimizer": sgd, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
    outer = {"optimizer": sgd, "lr_scheduler": scheduler, "monitor": "val/loss"}
    assert configs(parse_optimizers(inner)) == configs(parse_optimizers(outer)) == expected


@pytest.mark.holds("OS-17", "OS-18")
def test_a_list_of_dicts(sgd, adam):
    setup = parse_optimizers(
        (
            {"optimizer": sgd, "lr_scheduler": {"scheduler": StepLR(sgd, 1), "name": "first"}},
            {"optimizer": adam},
        )
    )
    assert setup.optimizers == [sgd, adam]
    assert [each.name for each in setup.schedulers] == ["first"]


def test_an_object_with_the_three_methods_is_a_scheduler(sgd):
    class Own:
        def step(self):
            """Advance."""

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            """Restore."""

    own = Own()
    assert parse_optimizers(([sgd], [own])).schedulers[0].scheduler is own


@pytest.mark.holds("OS-18")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda sgd: "adam",
            TypeError,
            r"returned something that is not an optimizer\. Got: 'str'\. Fix: return an opt",
        ),
        (lambda sgd: 3, TypeError, r"is not an optimizer\. Got: 'int'"),
        (lambda sgd: SGD, TypeError, r"is not an optimizer\. Got: 'the class SGD'"),
        (lambda sgd: [sgd, None], TypeError, r"is not an optimizer\. Got: 'NoneType'"),
        (lambda sgd: (sgd, StepLR(sgd, 1)), TypeError, r"is not an optimizer\. Got: 'StepLR'"),
        (lambda sgd: [sgd, {"optimizer": sgd}], TypeError, r"optimizers and dicts in one list"),
        (lambda sgd: {"optimiser": sgd}, ValueError, r"has no key 'optimiser'.*Did you mean 'optimizer'\?"),
        (lambda sgd: {"lr_scheduler": StepLR(sgd, 1)}, ValueError, r"a dict without 'optimizer'"),
        (
            lambda sgd: {"optimizer": sgd, "lr_scheduler": {"scheduler": StepLR(sgd, 1), "intervall": "step"}},
            ValueError,
            r"A scheduler's dict has no key 'intervall'.*Did you mean 'interval'\?",
        ),
        (
            lambda sgd: {"optimizer": sgd, "lr_scheduler": {"interval": "step"}},
            ValueError,
            r"A scheduler's dict has no 'scheduler'\. Got: \['interval'\]",
        ),
        (
            lambda sgd: {"optimizer": sgd, "lr_scheduler": {"scheduler": StepLR(sgd, 1), "interval": "steps"}},
            ValueError,
            r"The interval of StepLR is none\. Got: 'steps'.*Did you mean 'step'\?",
        ),
        (
            lambda sgd: {"optimizer": sgd, "lr_scheduler": {"scheduler": StepLR(sgd, 1), "frequency": 0}},
            ValueError,
            r"The frequency of StepLR is a whole number of at least 1\. Got: 0",
        ),
        (
            lambda sgd: {"optimizer": sgd, "lr_scheduler": {"scheduler": StepLR(sgd, 1), "monitor": 3}},
            TypeError,
            r"The monitor of StepLR is the name of a metric\. Got: 3",
        ),
        (
            lambda sgd: {"optimizer": sgd, "lr_scheduler": ReduceLROnPlateau(sgd)},
            ValueError,
            r"ReduceLROnPlateau has no metric to watch.*Fix: .*'monitor': 'val/loss'",
        ),
        (lambda sgd: ([sgd], [StepLR]), TypeError, r"returned a scheduler that is none\. Got: <class"),
        (lambda sgd: {"optimizer": sgd, "lr_scheduler": "cosine"}, TypeError, r"returned a scheduler that is none"),
        (
            lambda sgd: ([sgd], [StepLR(SGD(parameter(), lr=1.0), 1)]),
            ValueError,
            r"StepLR steps an optimizer that configure_optimizers did not return\. Got: 'SGD'",
        ),
    ],
)
def test_anything_else_is_refused(sgd, make, error, message):
    with pytest.raises(error, match=message):
        parse_optimizers(make(sgd))


def test_a_config_can_be_made_directly(sgd):
    config = SchedulerConfig(ReduceLROnPlateau(sgd), monitor="loss")
    assert config.reduce_on_plateau
    assert config.interval == "epoch"
