"""Loggers: where metrics go."""

from __future__ import annotations

from taskloom.loggers.base import Logger

__all__ = ["Logger"]
