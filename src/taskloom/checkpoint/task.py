"""Rebuilding a task from a checkpoint: `TaskModule.load_from_checkpoint` and `load_task`.

The class is the caller's, or one that was imported already: a checkpoint names the class that wrote it, but a name in a
file never makes Python import anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from taskloom.checkpoint.place import as_path
from taskloom.checkpoint.reader import CheckpointReader, open_checkpoint
from taskloom.checkpoint.restore import RestorePolicy
from taskloom.checkpoint.weights import Weights, copy_into
from taskloom.core.errors import CheckpointError, ConfigError, explain, nearest
from taskloom.core.task import TaskModule

Task = TypeVar("Task", bound=TaskModule)


def load_task(
    path: str | Path,
    task_class: type[TaskModule] | None = None,
    *,
    strict: bool | None = None,
    restore: RestorePolicy | None = None,
    **arguments: Any,
) -> TaskModule:
    """Return the task of a checkpoint: its class called with the saved hyper-parameters, and its weights.

    Args:
        path: a checkpoint.
        task_class: by default the class that wrote it, looked up by its name among the tasks that are imported already.
        strict: whether the tensors must match exactly; by default the task's `strict_loading`.
        restore: how names and shapes are matched, and which set of weights is loaded.
        **arguments: replace or complete the saved hyper-parameters.

    Raises:
        CheckpointError: the checkpoint cannot be read, its class is not imported, or it does not fit.
    """
    with open_checkpoint(path, verify=True) as reader:
        found = task_class or _imported_class(reader)
        return _rebuild(found, reader, {}, strict=strict, restore=restore, arguments=arguments)


def rebuild_task(
    cls: type[Task],
    path: str | Path,
    *,
    hparams_file: str | Path | None = None,
    strict: bool | None = None,
    restore: RestorePolicy | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Task:
    """Call a task class with the saved hyper-parameters and load the saved weights.

    Saved values that the class does not take are left out, so that a changed class can still be loaded.

    Args:
        cls: the task's class.
        path: a checkpoint; every file is verified.
        hparams_file: YAML or JSON mapping whose values replace the saved ones.
        strict: whether names of tensors must match exactly; by default the task's `strict_loading`.
        restore: how names and shapes are matched, and which set of weights is loaded.
        arguments: replace or complete all of these.

    Raises:
        CheckpointError: the checkpoint cannot be read, or does not fit the class.
        ConfigError: the file holds no mapping.
    """
    with open_checkpoint(path, verify=True) as reader:
        further = _from_file(hparams_file)
        return _rebuild(cls, reader, further, strict=strict, restore=restore, arguments=arguments or {})


def _rebuild(
    cls: type[Task],
    reader: CheckpointReader,
    further: Mapping[str, Any],
    *,
    strict: bool | None,
    restore: RestorePolicy | None,
    arguments: Mapping[str, Any],
) -> Task:
    policy = (restore or RestorePolicy()).for_evaluation("load_from_checkpoint")
    saved = {**reader.state.get("hyper_parameters", {}), **further}
    task = _construct(cls, reader, saved, arguments)
    task.configure_model()
    task.on_load_checkpoint(reader.state.get("custom", {}))
    exact = task.strict_loading if strict is None else strict
    weights = Weights(reader, policy, task, cls.__name__, strict=exact)
    problems = [*weights.problems, *weights.names.unused(weights.stored, weights.targets)]
    if problems:
        raise CheckpointError(
            f"The weights in {reader.path} do not fit {cls.__name__}. {' '.join(problems)} Or pass the arguments that "
            f"it was trained with, or strict=False for a partial match of names."
        )
    copy_into(task, weights.tensors())
    return task


def _imported_class(reader: CheckpointReader) -> type[TaskModule]:
    """Return the task class that a checkpoint names, if the program has it already; nothing is imported for it.

    Raises:
        CheckpointError: it has not.
    """
    wanted = str(reader.state.get("task_class", ""))
    known = {f"{each.__module__}.{each.__qualname__}": each for each in _subclasses(TaskModule)}
    found = known.get(wanted)
    if found is None:  # a script calls its own module __main__
        alike = [each for name, each in known.items() if name.rpartition(".")[2] == wanted.rpartition(".")[2]]
        found = alike[0] if len(alike) == 1 else None
    if found is None:
        raise CheckpointError(
            explain(
                f"{reader.path} was written by {wanted or 'a task without a name'}, which is not imported",
                why="a name in a checkpoint never imports anything, because that could run code",
                fix="import the class first, or pass it: load_task(path, MyTask)." + nearest(wanted, known),
            )
        )
    return found


def _subclasses(base: type[TaskModule]) -> Iterator[type[TaskModule]]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


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

    values = yaml.safe_load(as_path(path).read_text())
    if not isinstance(values, dict):
        raise ConfigError([explain(f"{path} does not hold a mapping of hyper-parameters", got=values, fix="lr: 0.001")])
    return values
