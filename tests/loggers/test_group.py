"""A logger that fails costs a curve, never a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from taskloom.core.errors import TaskloomWarning
from taskloom.loggers import CSVLogger, Logger, LoggerGroup


class Recorder(Logger):
    """Remembers every call."""

    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, folder: Path, *, run_name: str, project: str | None = None, resumed: bool = False) -> None:
        self.calls.append(("start", folder, run_name, project, resumed))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, epoch: int) -> None:
        self.calls.append((dict(metrics), step, epoch))

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        self.calls.append(parameters)

    def finish(self, status: str) -> None:
        self.calls.append(status)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls.append(state)


class Flaky(Recorder):
    """Fails while its server is away."""

    name = "flaky"
    away = True

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, epoch: int) -> None:
        if self.away:
            raise ConnectionError("the server is away")
        super().log_metrics(metrics, step=step, epoch=epoch)


def start(*loggers: Logger, folder: Path) -> LoggerGroup:
    group = LoggerGroup(loggers)
    group.start(folder, run_name="run")
    return group


@pytest.mark.holds("LG-04", "LG-05")
def test_every_logger_gets_every_call(tmp_path: Path) -> None:
    group = LoggerGroup([Recorder(), CSVLogger()])
    group.start(tmp_path, run_name="a-run", project="a-project", resumed=True)
    group.log_metrics({"x": 1.0}, step=3, epoch=1)
    group.finish("finished")
    recorder, table = group.loggers
    assert isinstance(recorder, Recorder)
    assert recorder.calls == [("start", tmp_path, "a-run", "a-project", True), ({"x": 1.0}, 3, 1), "finished"]
    assert Path(table.location).read_text() == "step,epoch,x\n3,1,1.0\n"
    assert group.locations() == [table.location]


@pytest.mark.holds("LG-13")
def test_a_failing_logger_is_named_once_and_the_others_go_on(tmp_path: Path) -> None:
    flaky, recorder = Flaky(), Recorder()
    group = start(flaky, recorder, folder=tmp_path)
    with pytest.warns(TaskloomWarning, match=r"logger 'flaky' failed.*ConnectionError: the server is away"):
        group.log_metrics({"x": 1.0}, step=0, epoch=0)
    for step in (1, 2):  # a second warning would be an error
        group.log_metrics({"x": 1.0}, step=step, epoch=0)
    assert [call[1] for call in recorder.calls[1:]] == [0, 1, 2]
    assert group.failures["flaky"].calls == 3
    flaky.away = False
    group.log_metrics({"x": 1.0}, step=3, epoch=0)
    assert flaky.calls[-1] == ({"x": 1.0}, 3, 0)
    assert group.locations() == [
        "flaky (incomplete: 3 calls failed, the last with ConnectionError: the server is away)"
    ]


def test_a_logger_that_cannot_start_is_an_error_that_names_it(tmp_path: Path) -> None:
    class Unreachable(Recorder):
        name = "unreachable"

        def start(self, folder: Path, *, run_name: str, project: str | None = None, resumed: bool = False) -> None:
            raise PermissionError("no access")

    with pytest.raises(RuntimeError, match=r"The logger 'unreachable' could not start.*PermissionError: no access"):
        start(Unreachable(), folder=tmp_path)


def test_an_interrupt_is_not_swallowed(tmp_path: Path) -> None:
    class Interrupted(Recorder):
        name = "interrupted"

        def log_metrics(self, metrics: Mapping[str, float], *, step: int, epoch: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(Interrupted(), folder=tmp_path).log_metrics({"x": 1.0}, step=0, epoch=0)


def test_nothing_is_logged_before_there_is_a_folder() -> None:
    recorder = Recorder()
    LoggerGroup([recorder]).log_metrics({"x": 1.0}, step=0, epoch=0)
    assert recorder.calls == []


def test_state_is_kept_by_name(tmp_path: Path) -> None:
    state = start(Recorder(), folder=tmp_path).state_dict()
    assert state == {"recorder": {"calls": 1}}
    again = Recorder()
    LoggerGroup([again, CSVLogger()]).load_state_dict(state)
    assert again.calls == [{"calls": 1}]


def test_what_a_logger_cannot_do_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(TaskloomWarning, match="'recorder' does not record images"):
        Recorder().log_image("x", None, step=0)
