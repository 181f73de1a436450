"""Ways to spread a module over processes and devices."""

from __future__ import annotations

from taskloom.strategies.base import Strategy

__all__ = ["Strategy"]
