"""Every test starts from the same state and leaves the process as it found it.

A test that leaks (a thread, a process, an environment variable, a changed default of torch) fails itself, rather than
some other test that runs after it on another day. What a session or module fixture starts may live on: threads and
processes are compared from the moment the test's fixtures are ready.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
import torch

# pytest writes the running test's name; torch where its compiler keeps files, when it first needs to know; scikit-learn
# two settings of OpenMP, when it is first imported.
NOT_OURS = frozenset({"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"})
# How long something that is ending may take to end, in seconds.
GRACE = 5.0

State = dict[str, object]
before_setup = pytest.StashKey[State]()
alive_before_call = pytest.StashKey[set[object]]()


@pytest.fixture(autouse=True)
def _same_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed random states, one thread, and an empty working folder, so that run folders land nowhere else."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)


def process_state() -> State:
    """What no test may change for the next one, by a name to show."""
    return {
        "default dtype of torch": torch.get_default_dtype(),
        "default device of torch": torch.get_default_device(),
        "gradients are enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "precision of float32 products": torch.get_float32_matmul_precision(),
        "anomaly detection of autograd": torch.is_anomaly_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "a process group is open": torch.distributed.is_available() and torch.distributed.is_initialized(),
        "handler of SIGINT": signal.getsignal(signal.SIGINT),
        "handler of SIGTERM": signal.getsignal(signal.SIGTERM),
        "handler of SIGUSR1": signal.getsignal(signal.SIGUSR1),
        "working folder": Path.cwd(),
        **{f"environment variable {k}": v for k, v in os.environ.items() if k not in NOT_OURS},
    }


def alive() -> set[object]:
    """Threads and child processes of this process."""
    return {*threading.enumerate(), *multiprocessing.active_children()}


def changes(before: State, after: State) -> list[str]:
    """Say what differs between two states."""
    return [
        f"{name}: {before.get(name, 'absent')!r} became {after.get(name, 'absent')!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def survivors(before: set[object]) -> list[str]:
    """Name the threads and processes that are new and do not end by themselves."""
    for leftover in alive() - before:
        join: Callable[[float], None] = leftover.join  # type: ignore[attr-defined]
        join(GRACE)
    return [f"still alive: {leftover!r}" for leftover in alive() - before]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    item.stash[before_setup] = process_state()
    yield
    item.stash[alive_before_call] = alive()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    yield
    leaked = changes(item.stash[before_setup], process_state())
    if alive_before_call in item.stash:
        leaked += survivors(item.stash[alive_before_call])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if leaked:
        pytest.fail("the test leaves behind:\n  " + "\n  ".join(leaked), pytrace=False)
