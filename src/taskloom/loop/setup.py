"""The settings of a run that its checkpoints remember."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from taskloom.data import NamedLoader
from taskloom.data.loaders import declared_batch_size
from taskloom.loop.run import Run


def setup_of(run: Run, loader: NamedLoader) -> dict[str, Any]:
    """Return, as data, what decides about the numbers of a training beside its task, its data and its weights."""
    trainer, strategy, settings = run.trainer, run.strategy, run.trainer.settings
    seed = {} if settings.seed is None else {"seed": settings.seed}
    return {
        "taskloom": _version(),
        "torch": str(torch.__version__),
        "accelerator": strategy.accelerator.name,
        "strategy": strategy.name,
        "precision": strategy.precision.name,
        "world_size": strategy.world_size,
        "micro_batch_size": declared_batch_size(loader.loader),
        "batches_per_epoch": loader.length,
        "accumulate_grad_batches": asdict(settings.accumulation),
        "gradient_clip_val": asdict(settings.clipping),
        "deterministic": trainer.determinism.algorithms,
        **seed,
        "max_epochs": settings.epochs.max,
        "max_steps": settings.steps.max,
        "max_time": settings.seconds,
    }


@cache
def _version() -> str:
    try:
        return version("taskloom")
    except PackageNotFoundError:  # run from its source, without having been installed
        return "source"
