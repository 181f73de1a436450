from __future__ import annotations

from taskloom import TaskModule
from taskloom.core.hooks import overridden


class Quiet(TaskModule):
    pass


class Loud(TaskModule):
    def on_fit_start(self) -> None:
        pass


class Louder(Loud):
    pass


def test_only_what_replaces_the_base_is_overridden():
    assert overridden(Quiet(), "on_fit_start", TaskModule) is None
    for task in (Loud(), Louder()):
        assert overridden(task, "on_fit_start", TaskModule) == task.on_fit_start
        assert overridden(task, "on_fit_end", TaskModule) is None


def test_an_instance_may_replace_a_method_of_its_own():
    task = Quiet()
    task.on_fit_start = lambda: None
    assert overridden(task, "on_fit_start", TaskModule) is task.on_fit_start
