"""Who started this process, and which of how many it is."""

from __future__ import annotations

from taskloom.launch.environments.base import Environment, SingleProcess

__all__ = ["Environment", "SingleProcess"]
