"""Callbacks: what takes part in a run without being part of the task."""

from __future__ import annotations

from taskloom.callbacks.base import Callback

__all__ = ["Callback"]
