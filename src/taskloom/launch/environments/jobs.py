"""Finding the job that a process is part of."""

from __future__ import annotations

from collections.abc import Mapping

from taskloom.launch.environments.base import Job
from taskloom.launch.environments.slurm import slurm_job


def find_job(environment: Mapping[str, str]) -> Job | None:
    """Return the job that schedulers tell of in the environment's variables, None where there is none.

    Slurm comes before torchrun: a requeued job is another run of torchrun and the same job of Slurm.
    """
    return slurm_job(environment) or _elastic_job(environment)


def _elastic_job(environment: Mapping[str, str]) -> Job | None:
    """Return the run of torchrun, which starts its workers again after a failure; one without an id has no name."""
    name = environment.get("TORCHELASTIC_RUN_ID")
    if not name or name == "none":
        return None
    restarts = environment.get("TORCHELASTIC_RESTART_COUNT", "")
    return Job("elastic", name, restarts=int(restarts) if restarts.isdecimal() else 0)
