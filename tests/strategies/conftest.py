"""The strategies that every test of `Strategy` runs over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskloom.resolve import resolve
from taskloom.strategies import Strategy

ON_ONE_PROCESS = ("single",)


@pytest.fixture(params=ON_ONE_PROCESS)
def make_strategy(request) -> Callable[..., Strategy]:
    """Return a function that connects and starts a strategy under a precision."""

    def make(precision: object = "32-true") -> Strategy:
        strategy = resolve(accelerator="cpu", devices=1, strategy=request.param, precision=precision).strategy
        strategy.start()
        request.addfinalizer(strategy.close)
        return strategy

    return make


@pytest.fixture
def strategy(make_strategy) -> Strategy:
    """A strategy in full precision."""
    return make_strategy()
