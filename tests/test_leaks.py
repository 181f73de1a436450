"""tests/leaks.py: a test that leaks fails itself, and only a test that leaks."""

from pathlib import Path

import pytest

LEAKING = """
import os, signal, threading
import torch

def test_variable():
    os.environ["LEAKED"] = "1"

def test_dtype():
    torch.set_default_dtype(torch.float64)

def test_handler():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""

CLEAN = """
import random, threading
from pathlib import Path
import numpy, pytest, torch

@pytest.fixture(scope="module")
def shared():
    stop = threading.Event()
    threading.Thread(target=stop.wait).start()
    yield
    stop.set()

def test_shared_thread(shared, monkeypatch):
    monkeypatch.setenv("NOT_LEAKED", "1")

def test_thread_that_ends():
    threading.Thread(target=int).start()

@pytest.mark.parametrize("n", [1, 2])
def test_same_start(n):
    assert [random.random(), numpy.random.rand(), torch.rand(()).item()] == pytest.approx(DRAWN)
    assert not list(Path.cwd().iterdir())
    Path("written").touch()

random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
DRAWN = [random.random(), numpy.random.rand(), torch.rand(()).item()]
"""


def test_a_leak_is_an_error_of_the_test_that_leaks(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makeconftest("import leaks\nleaks.GRACE = 0.01\n")
    pytester.makepyfile(test_clean=CLEAN, test_leaking=LEAKING)
    result = pytester.runpytest_subprocess("-p", "leaks")
    result.assert_outcomes(passed=8, errors=4)
    result.stdout.fnmatch_lines_random(
        [
            "*environment variable LEAKED: 'absent' became '1'*",
            "*default dtype of torch: torch.float32 became torch.float64*",
            "*handler of SIGTERM: *became*SIG_IGN*",
            "*still alive: <Thread*",
        ]
    )
