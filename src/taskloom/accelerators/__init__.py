"""Devices of one kind each."""

from __future__ import annotations

from taskloom.accelerators.base import Accelerator

__all__ = ["Accelerator"]
