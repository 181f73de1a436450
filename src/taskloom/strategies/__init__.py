"""Ways to spread a module over processes and devices."""

from __future__ import annotations

from taskloom.strategies.base import Strategy
from taskloom.strategies.single import SingleStrategy

__all__ = ["SingleStrategy", "Strategy"]
