"""The Slurm job that a process is part of, from the variables described in the manual pages of sbatch and srun."""

from __future__ import annotations

from collections.abc import Mapping

from taskloom.launch.environments.base import Job

# `srun --pty bash` names its job after the shell, salloc calls it "interactive".
_INTERACTIVE = frozenset({"interactive", "bash", "sh", "zsh", "fish", "csh", "tcsh", "ksh", "python", "ipython"})
_TERMINAL = ("SLURM_PTY_PORT", "SLURM_PTY_WIN_ROW")


def slurm_job(environment: Mapping[str, str]) -> Job | None:
    """Return the job, None outside Slurm; a task of an array is called `<array>_<task>`."""
    number = environment.get("SLURM_JOB_ID") or environment.get("SLURM_JOBID")
    if not number:
        return None
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else number
    restarts = environment.get("SLURM_RESTART_COUNT", "")
    return Job(
        "slurm",
        name,
        restarts=int(restarts) if restarts.isdecimal() else 0,
        interactive=environment.get("SLURM_JOB_NAME") in _INTERACTIVE or any(each in environment for each in _TERMINAL),
        requeue_command=("scontrol", "requeue", name),
    )
