"""The job that a process is part of, as Slurm and torchrun tell."""

from __future__ import annotations

import pytest

from taskloom.launch.environments import find_job


@pytest.mark.holds("R15")
def test_a_slurm_job_is_recognised() -> None:
    job = find_job({"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "train", "SLURM_RESTART_COUNT": "2"})
    assert job is not None
    assert (job.scheduler, job.name, job.restarts, job.interactive) == ("slurm", "12", 2, False)
    assert job.requeue_command == ("scontrol", "requeue", "12")


@pytest.mark.holds("R15")
def test_a_task_of_an_array_is_called_by_both_numbers() -> None:
    job = find_job({"SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"})
    assert job is not None
    assert (job.name, job.requeue_command[-1]) == ("12_0", "12_0")


@pytest.mark.parametrize(
    ("variables", "interactive"),
    [
        ({"SLURM_JOB_NAME": "bash"}, True),
        ({"SLURM_JOB_NAME": "interactive"}, True),
        ({"SLURM_JOB_NAME": "train", "SLURM_PTY_PORT": "40123"}, True),
        ({"SLURM_JOB_NAME": "bash-experiments"}, False),
        ({}, False),
    ],
)
def test_a_job_that_a_person_sits_at_is_told_apart(variables: dict[str, str], interactive: bool) -> None:
    job = find_job({"SLURM_JOB_ID": "12", **variables})
    assert job is not None
    assert job.interactive == interactive


def test_torchrun_is_recognised_where_its_run_has_a_name() -> None:
    job = find_job({"TORCHELASTIC_RUN_ID": "abc", "TORCHELASTIC_RESTART_COUNT": "1"})
    assert job is not None
    assert (job.scheduler, job.name, job.restarts, job.requeue_command) == ("elastic", "abc", 1, ())
    assert find_job({"TORCHELASTIC_RUN_ID": "none"}) is None
    within = find_job({"TORCHELASTIC_RUN_ID": "abc", "SLURM_JOB_ID": "12"})
    assert within is not None
    assert within.scheduler == "slurm"


def test_outside_of_any_scheduler_there_is_no_job() -> None:
    assert find_job({}) is None
    assert find_job({"SLURM_JOB_ID": ""}) is None
