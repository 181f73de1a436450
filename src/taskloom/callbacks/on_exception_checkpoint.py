"""`OnExceptionCheckpoint`: a checkpoint when training fails."""

from __future__ import annotations

from pathlib import Path

from taskloom.callbacks.base import Callback
from taskloom.core.errors import ConfigError, explain


class OnExceptionCheckpoint(Callback):
    """Saves a checkpoint of the last whole step when training ends with an error; `ckpt_path="last"` finds it.

    It lies among the others of the run, whatever their policies keep. Ctrl-C and signals save without this callback. It
    keeps a copy of the training state between steps, about a millisecond of work each; not of the weights. Nothing is
    saved, and the error says so, where the optimizer's step itself failed, where the loss was not finite, and with
    several processes, since those that have not failed cannot take part.

    Args:
        dirpath: not offered; checkpoints go below the run's folder.
        filename: not offered; checkpoints are called after their step.

    Raises:
        ConfigError: an argument is not offered here.
    """

    saves_on_exception = True

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None) -> None:
        given = {"dirpath": dirpath, "filename": filename}
        problems = [
            explain(
                f"OnExceptionCheckpoint has no {name}",
                fix="leave it out; the checkpoint lies in the run's folder (Trainer(run_dir=...)) and is its last one",
            )
            for name, value in given.items()
            if value is not None
        ]
        if problems:
            raise ConfigError(problems)
