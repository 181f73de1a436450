"""taskloom: write a `TaskModule`, pick an accelerator, a precision and a strategy, and train.

Public names load on first use (PEP 562), so `import taskloom` costs no `import torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskloom.core.lazy import on_first_use

__version__ = "0.1.0.dev0"

_HOME = {
    "Accelerator": "taskloom.accelerators",
    "Accumulation": "taskloom.core.policies",
    "Between": "taskloom.core.policies",
    "Callback": "taskloom.callbacks",
    "CheckpointError": "taskloom.core.errors",
    "CheckpointPolicy": "taskloom.checkpoint",
    "CombinedLoader": "taskloom.data",
    "ConfigError": "taskloom.core.errors",
    "DataModule": "taskloom.core.data",
    "DebugOptions": "taskloom.core.policies",
    "Determinism": "taskloom.core.policies",
    "Fabric": "taskloom.fabric",
    "FitResult": "taskloom.trainer",
    "GradientClipping": "taskloom.core.policies",
    "Interval": "taskloom.core.interval",
    "LimitBatches": "taskloom.core.policies",
    "LogPolicy": "taskloom.core.policies",
    "LossScaling": "taskloom.precision",
    "Logger": "taskloom.loggers",
    "Loss": "taskloom.core.loss",
    "MixedPrecision": "taskloom.precision",
    "NativePrecision": "taskloom.precision",
    "NonFiniteError": "taskloom.core.errors",
    "Preempted": "taskloom.core.errors",
    "Precision": "taskloom.precision",
    "Progress": "taskloom.core.progress",
    "RestorePolicy": "taskloom.checkpoint",
    "RunFolder": "taskloom.core.policies",
    "SingleStrategy": "taskloom.strategies",
    "Skip": "taskloom.core.loss",
    "Strategy": "taskloom.strategies",
    "TaskCLI": "taskloom.cli",
    "TaskModule": "taskloom.core.task",
    "TaskloomWarning": "taskloom.core.errors",
    "Trainer": "taskloom.trainer",
    "ValidationPolicy": "taskloom.core.policies",
    "load_task": "taskloom.checkpoint",
    "seed_everything": "taskloom.core.seed",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - built from the table so that a name exists once

if TYPE_CHECKING:
    from taskloom.accelerators import Accelerator as Accelerator
    from taskloom.callbacks import Callback as Callback
    from taskloom.checkpoint import CheckpointPolicy as CheckpointPolicy
    from taskloom.checkpoint import RestorePolicy as RestorePolicy
    from taskloom.checkpoint import load_task as load_task
    from taskloom.cli import TaskCLI as TaskCLI
    from taskloom.core.data import DataModule as DataModule
    from taskloom.core.errors import CheckpointError as CheckpointError
    from taskloom.core.errors import ConfigError as ConfigError
    from taskloom.core.errors import NonFiniteError as NonFiniteError
    from taskloom.core.errors import Preempted as Preempted
    from taskloom.core.errors import TaskloomWarning as TaskloomWarning
    from taskloom.core.interval import Interval as Interval
    from taskloom.core.loss import Loss as Loss
    from taskloom.core.loss import Skip as Skip
    from taskloom.core.policies import Accumulation as Accumulation
    from taskloom.core.policies import Between as Between
    from taskloom.core.policies import DebugOptions as DebugOptions
    from taskloom.core.policies import Determinism as Determinism
    from taskloom.core.policies import GradientClipping as GradientClipping
    from taskloom.core.policies import LimitBatches as LimitBatches
    from taskloom.core.policies import LogPolicy as LogPolicy
    from taskloom.core.policies import RunFolder as RunFolder
    from taskloom.core.policies import ValidationPolicy as ValidationPolicy
    from taskloom.core.progress import Progress as Progress
    from taskloom.core.seed import seed_everything as seed_everything
    from taskloom.core.task import TaskModule as TaskModule
    from taskloom.data import CombinedLoader as CombinedLoader
    from taskloom.fabric import Fabric as Fabric
    from taskloom.loggers import Logger as Logger
    from taskloom.precision import LossScaling as LossScaling
    from taskloom.precision import MixedPrecision as MixedPrecision
    from taskloom.precision import NativePrecision as NativePrecision
    from taskloom.precision import Precision as Precision
    from taskloom.strategies import SingleStrategy as SingleStrategy
    from taskloom.strategies import Strategy as Strategy
    from taskloom.trainer import FitResult as FitResult
    from taskloom.trainer import Trainer as Trainer

__getattr__ = on_first_use(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
