"""Starting processes, and telling which one this is."""

from __future__ import annotations

from taskloom.launch.base import InProcess, Launcher

__all__ = ["InProcess", "Launcher"]
