"""Saves that run while training does."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from taskloom.checkpoint.background import BackgroundWriter
from taskloom.core.errors import CheckpointError


@pytest.fixture
def told():
    return []


@pytest.fixture
def writer(told):
    return BackgroundWriter(lambda: told.append(threading.current_thread()))


def fail(error: BaseException):
    def save() -> None:
        raise error

    return save


def test_a_save_runs_in_a_thread_of_its_own_that_ends_with_it(writer):
    seen = []
    writer.submit(lambda: seen.append(threading.current_thread()), "step-1")
    writer.wait()
    assert seen[0] is not threading.current_thread()
    assert "saving step-1" in seen[0].name
    assert not seen[0].is_alive()
    assert not writer.is_writing


@pytest.mark.holds("R16")
def test_one_save_is_in_hand_at_a_time_and_the_next_waits_for_it(writer):
    may_end, order = threading.Event(), []

    def first() -> None:
        may_end.wait(10)
        order.append("first")

    writer.submit(first, "step-1")
    assert writer.is_writing
    threading.Timer(0.05, may_end.set).start()
    writer.submit(lambda: order.append("second"), "step-2")
    assert order[0] == "first"
    writer.wait()
    assert order == ["first", "second"]


@pytest.mark.holds("R16")
def test_a_failure_is_raised_once_with_its_cause(writer, told):
    writer.submit(fail(ZeroDivisionError("by nothing")), "step-1")
    with pytest.raises(CheckpointError, match=r"step-1 could not.*ZeroDivisionError: by nothing") as caught:
        writer.wait()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert told[0] is not threading.current_thread()
    writer.wait()
    writer.check()


def test_an_error_that_says_what_to_do_is_kept_as_it_is(writer):
    writer.submit(fail(CheckpointError("The disk is full. Fix: free space")), "step-1")
    with pytest.raises(CheckpointError, match=r"The disk is full. Fix: free space.*while training went on"):
        writer.wait()


def test_a_failure_that_nobody_waited_for_meets_whoever_saves_next(writer):
    writer.submit(fail(OSError("gone")), "step-1")
    with pytest.raises(CheckpointError, match="step-1"):
        writer.submit(lambda: None, "step-2")


def test_check_does_not_wait(writer):
    may_end = threading.Event()
    writer.submit(lambda: may_end.wait(10) and None, "step-1")
    writer.check()
    assert not writer.has_failed
    may_end.set()
    writer.wait()


def test_an_interpreter_that_ends_waits_for_the_save(tmp_path):
    program = f"""
import time
from taskloom.checkpoint.background import BackgroundWriter
def save():
    time.sleep(0.3)
    open({str(tmp_path / "saved")!r}, "w").close()
BackgroundWriter(lambda: None).submit(save, "step-1")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "saved").exists()
