"""Rebuilding a task from a checkpoint: `TaskModule.load_from_checkpoint`.

The class is the caller's. A checkpoint holds only the arguments it was made with, so nothing is looked up by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from taskloom.checkpoint.reader import CheckpointReader, open_checkpoint
from taskloom.core.errors import CheckpointError, ConfigError, explain

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule

Task = TypeVar("Task", bound="TaskModule")


def load_task(
    cls: type[Task],
    path: Path,
    *,
    hparams_file: str | Path | None = None,
    strict: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Task:
    """Call a task class with the saved hyper-parameters and load the saved weights.

    Saved values that the class does not take are left out, so that a changed class can still be loaded.

    Args:
        cls: the task's class.
        path: a checkpoint; every file is verified.
        hparams_file: YAML or JSON mapping whose values replace the saved ones.
        strict: whether names of tensors must match exactly; by default the task's `strict_loading`.
        arguments: replace or complete all of these.

    Raises:
        CheckpointError: the checkpoint cannot be read, or does not fit the class.
        ConfigError: the file holds no mapping.
    """
    with open_checkpoint(path, verify=True) as reader:
        saved = {**reader.state.get("hyper_parameters", {}), **_from_file(hparams_file)}
        task = _construct(cls, reader, saved, arguments or {})
        task.configure_model()
        task.on_load_checkpoint(reader.state.get("custom", {}))
        try:
            task.load_state_dict(dict(reader.model_tensors()), strict=task.strict_loading if strict is None else strict)
        except RuntimeError as error:
            raise CheckpointError(
                explain(
                    f"The weights in {reader.path} do not fit {cls.__name__}",
                    got=str(error),
                    fix="pass the arguments that it was trained with, or strict=False for a partial match of names",
                )
            ) from error
    return task


def _construct(
    cls: type[Task], reader: CheckpointReader, saved: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Task:
    parameters = inspect.signature(cls).parameters.values()
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    kept = {name: value for name, value in saved.items() if takes_any or name in names}
    try:
        inspect.signature(cls).bind(**{**kept, **arguments})
    except TypeError as error:
        raise CheckpointError(
            explain(
                f"{cls.__name__} cannot be made from the hyper-parameters in {reader.path}",
                got=str(error),
                fix="pass what is missing as keyword arguments, and call save_hyperparameters() in __init__",
            )
        ) from error
    return cls(**{**kept, **arguments})


def _from_file(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml  # imported here, because opening a checkpoint never needs it

    values = yaml.safe_load(Path(path).read_text())
    if not isinstance(values, dict):
        raise ConfigError([explain(f"{path} does not hold a mapping of hyper-parameters", got=values, fix="lr: 0.001")])
    return values
