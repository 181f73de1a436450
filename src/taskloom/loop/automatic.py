"""`ckpt_path="auto"`: continue this run if it has a checkpoint, begin it otherwise, with one and the same command.

Which run is meant must not be a guess: a search for the newest one would take up what another training has left. It is
the one that `RunFolder(name=...)` names, or else the one of this job, which keeps its name when its scheduler starts it
again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from taskloom.checkpoint.place import children, run_root
from taskloom.core.errors import ConfigError, explain
from taskloom.core.policies import RunFolder
from taskloom.launch.environments import find_job
from taskloom.loop.folder import CHECKPOINTS, Found, find_checkpoint

# Lightning's name of a checkpoint that a job left for its successor.
AUTOMATIC = ("auto", "hpc")


def automatic_run(choice: RunFolder, task_name: str, environment: Mapping[str, str]) -> RunFolder:
    """Return the folder of the run that is to be continued or begun.

    Args:
        choice: what the user chose.
        task_name: the task's class, which the folder of a job is called after.
        environment: variables in which a scheduler tells of the job.

    Raises:
        ConfigError: the run has no name and there is no job.
    """
    name = choice.name
    if name is None:
        job = find_job(environment)
        if job is None:
            raise ConfigError(
                [
                    explain(
                        "ckpt_path='auto' does not know which run to continue",
                        why="the run has no name, and no job of a scheduler was recognised that it could be called "
                        "after",
                        fix="run_dir=RunFolder(name='my-run'), on the command line --run_dir.name my-run; "
                        "ckpt_path='last' continues the newest run",
                    )
                ]
            )
        name = f"{task_name.lower()}-{job.scheduler}-{re.sub(r'[^A-Za-z0-9._-]', '-', job.name)}"
    return replace(choice, name=name, overwrite=True)


def find_automatic(choice: RunFolder) -> Found | None:
    """Return the newest checkpoint of the run that `automatic_run` returned, None if it has saved none yet.

    Raises:
        CheckpointError: it has checkpoints, and none verifies: to begin anew beside them would lose work silently.
    """
    run = run_root(choice) / str(choice.name)
    names = [path.name for path, is_a_folder in children(run / CHECKPOINTS) if is_a_folder]
    saved = [name for name in names if "step-" in name and ".writing-" not in name]
    return find_checkpoint(run, choice, None) if saved else None
