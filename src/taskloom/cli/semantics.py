"""What a type cannot say: whether an interval can be read, a precision exists, a policy's options go together.

Each check builds nothing heavier than a small record of options, so `task check` and the start of every run can afford
all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from taskloom.checkpoint import RestorePolicy
from taskloom.cli.explain import options_meant, placed
from taskloom.cli.interpolate import is_reference
from taskloom.cli.root import Root
from taskloom.cli.schema import branches, item_type, made_by, parameters
from taskloom.cli.tree import Node, class_name, plain, walk
from taskloom.core.errors import ABSENT, ConfigError, explain
from taskloom.core.task import TaskModule
from taskloom.resolve import REGISTRIES, Kind, resolve
from taskloom.trainer import Trainer

# Parameters of the Trainer that say something about the machine, which `task check` leaves alone, or that hold objects.
_NOT_PROBED = frozenset({"accelerator", "devices", "num_nodes", "strategy", "precision", "seed", "callbacks"})

# Names that stand for a choice, beside those in the registries.
CHOICES: Mapping[Kind, frozenset[str]] = {
    "accelerator": frozenset({"auto", "gpu"}),
    "strategy": frozenset({"auto"}),
    "precision": frozenset(),
}


def check_names(tree: Node, problems: list[str]) -> None:
    """Look up the names of accelerator, precision and strategy, without asking whether this machine has them."""
    for key, choices in CHOICES.items():
        node = tree.value.get(key)
        if node is None or isinstance(node.value, (dict, list)) or is_reference(node.value) or node.value in choices:
            continue
        try:
            REGISTRIES[key].load(str(node.value))
        except (ValueError, ImportError) as error:
            problems.append(placed(node, key, str(error)))


def check_machine(tree: Node, values: Mapping[str, Any], problems: list[str]) -> None:
    """Resolve the graph before anything is built for it: is the device here, does it compute in that precision."""
    keys = ("accelerator", "devices", "num_nodes", "strategy", "precision")
    given = {key: tree.value[key] for key in keys if key in tree.value}
    if any(node.is_mapping for node in given.values()):
        return  # objects with options are resolved by the Trainer
    try:
        resolve(**{key: values[key] for key in keys})
    except ConfigError as error:
        places = ", ".join(dict.fromkeys(f"{node.source}: {key}" for key, node in given.items()))
        problems.extend(f"{places}: {problem}" if places else problem for problem in error.problems)


def check_values(tree: Node, problems: list[str]) -> None:
    """Let a Trainer read every value that can be read without building more than a record of options."""
    values: dict[str, Any] = {}
    for name, parameter in parameters(Trainer).items():
        node = tree.value.get(name)
        if node is None or name in _NOT_PROBED or _unreadable(node):
            continue
        try:
            values[name] = _built(parameter.annotation, node)
        except ArgumentError:
            continue  # of the wrong type, which is reported already
        except (ValueError, TypeError) as error:  # a record of options refused its values
            problems.append(placed(node, name, str(error)))
    restore = tree.value.get("restore")
    if restore is not None and not restore.is_null:
        try:
            _built(RestorePolicy | None, restore)
        except ArgumentError:
            pass  # of the wrong type, which is reported already
        except ConfigError as error:
            problems.extend(placed(restore, "restore", problem) for problem in error.problems)
    try:
        Trainer(accelerator="cpu", devices=1, **values)
    except ConfigError as error:
        for problem in error.problems:
            name, _, text = problem.partition(": ")
            problems.append(placed(tree.value[name], name, text) if name in tree.value else problem)


def check_optimizer(root: Root, tree: Node, stage: str, problems: list[str]) -> None:
    """Check that the task and the command line agree on who makes the optimizer."""
    task = made_by(root.kind_at(tree, "task"))
    optimizer, scheduler = (_given(tree, key) for key in ("optimizer", "lr_scheduler"))
    if task is None or not issubclass(task, TaskModule):
        return
    overridden = task.configure_optimizers is not TaskModule.configure_optimizers
    for key, node in (("optimizer", optimizer), ("lr_scheduler", scheduler)):
        if node is not None and overridden:
            problems.append(
                placed(
                    node,
                    key,
                    explain(
                        f"{task.__name__} makes its own optimizer in configure_optimizers, so none can be chosen here",
                        got=class_name(node),
                        fix=f"remove {key}, or remove configure_optimizers from {task.__name__}",
                    ),
                )
            )
    if scheduler is not None and optimizer is None and not overridden:
        problems.append(
            placed(
                scheduler,
                "lr_scheduler",
                explain(
                    "A learning-rate schedule needs an optimizer to act on",
                    got=class_name(scheduler),
                    fix="pass --optimizer adamw too",
                ),
            )
        )
    elif optimizer is None and not overridden and stage == "fit":
        problems.append(
            "optimizer: "
            + explain(
                f"{task.__name__} has no configure_optimizers, and no optimizer is chosen",
                fix="pass --optimizer adamw --optimizer.lr 1e-3, or write configure_optimizers",
            )
        )


def _given(tree: Node, key: str) -> Node | None:
    node: Node | None = tree.value.get(key)
    return None if node is None or node.is_null else node


def _unreadable(node: Node) -> bool:
    """Whether a value names classes other than options, or holds a reference that could not be resolved."""
    return any(is_reference(item.value) for _, item in [("", node), *walk(node)]) or any(
        item.is_spec for _, item in [("", node), *walk(node)]
    )


def _built(annotation: Any, node: Node) -> Any:
    """Let jsonargparse convert a value, and build the records of options in it."""
    members = branches(annotation)
    if node.is_list and item_type(annotation) is ABSENT:
        sequence = next((member for member in members if item_type(member) is not ABSENT), None)
        if sequence is not None and any(item.is_mapping for item in node.value):
            return [_built(item_type(sequence), item) for item in node.value]
    options = options_meant(node, members)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=options or annotation)
    parsed = parser.parse_object({"value": plain(node)}, env=False, defaults=options is not None)
    return parser.instantiate(parsed).value if options is not None else parsed.value
