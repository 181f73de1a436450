"""Deterministic algorithms for the length of a stage, and torch's own settings again after it."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

from taskloom.core.policies import Determinism

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def determinism(choice: Determinism) -> Generator[None, None, None]:
    """Compute as a `Determinism` says within; a setting that it leaves out is not touched.

    cuBLAS is deterministic only with one of two sizes of its workspace, which it reads from the environment
    (docs.nvidia.com/cuda/cublas, "Results reproducibility"); a value that is there already is left alone.
    """
    algorithms, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(_WORKSPACE)
    wanted = False if choice.benchmark is None and choice.algorithms else choice.benchmark
    try:
        if choice.algorithms:
            torch.use_deterministic_algorithms(True, warn_only=choice.algorithms == "warn")
            os.environ.setdefault(_WORKSPACE, ":4096:8")
        if wanted is not None:
            torch.backends.cudnn.benchmark = wanted
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
