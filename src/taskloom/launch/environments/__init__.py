"""Who started this process, and which of how many it is."""

from __future__ import annotations

from taskloom.launch.environments.base import Environment, Job, SingleProcess
from taskloom.launch.environments.jobs import find_job

__all__ = ["Environment", "Job", "SingleProcess", "find_job"]
