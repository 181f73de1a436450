"""Loggers: where metrics go. One file per destination; `taskloom.loggers.base` is all a new one has to know."""

from __future__ import annotations

from taskloom.loggers.base import Logger
from taskloom.loggers.csv import CSVLogger
from taskloom.loggers.group import LoggerGroup
from taskloom.loggers.hyperparameters import sanitize_hyperparameters
from taskloom.loggers.jsonl import JSONLLogger
from taskloom.loggers.resolve import resolve_loggers
from taskloom.loggers.tensorboard import TensorBoardLogger

__all__ = [
    "CSVLogger",
    "JSONLLogger",
    "Logger",
    "LoggerGroup",
    "TensorBoardLogger",
    "resolve_loggers",
    "sanitize_hyperparameters",
]
