"""Optimizers and schedulers: by name, as `configure_optimizers` returns them, and as a user's code sees them."""

from __future__ import annotations

from taskloom.optim.groups import check_groups, parameter_names, parameters_of, warn_unoptimized
from taskloom.optim.parse import OptimizerSetup, SchedulerConfig, parse_optimizers, unique_names
from taskloom.optim.registry import OPTIMIZERS, SCHEDULERS, optimizer_class, scheduler_class
from taskloom.optim.state import named_optimizer_state, named_optimizer_tensors, restore_optimizer
from taskloom.optim.task_optimizer import TaskOptimizer

__all__ = [
    "OPTIMIZERS",
    "SCHEDULERS",
    "OptimizerSetup",
    "SchedulerConfig",
    "TaskOptimizer",
    "check_groups",
    "named_optimizer_state",
    "named_optimizer_tensors",
    "optimizer_class",
    "parameter_names",
    "parameters_of",
    "parse_optimizers",
    "restore_optimizer",
    "scheduler_class",
    "unique_names",
    "warn_unoptimized",
]
