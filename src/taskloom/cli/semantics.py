"""What a type cannot say: whether an interval can be read, a precision exists, a policy's options go together.

Each check builds nothing heavier than a small record of options, so `task check` and the start of every run can afford
all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from taskloom.cli.explain import placed
from taskloom.cli.interpolate import is_reference
from taskloom.cli.root import Root
from taskloom.cli.schema import branches, built_class, is_options, made_by
from taskloom.cli.tree import Node, class_name, plain, walk
from taskloom.core.errors import ConfigError, explain
from taskloom.core.interval import parse_seconds
from taskloom.core.policies import (
    Accumulation,
    DebugOptions,
    GradientClipping,
    LimitBatches,
    RunFolder,
    ValidationPolicy,
)
from taskloom.core.task import TaskModule

Check = Callable[[Any], object]

# What reads the value of a Trainer parameter; it raises ValueError or TypeError when it cannot.
READERS: Mapping[str, Check] = {
    "accumulate_grad_batches": Accumulation.of,
    "debug": DebugOptions.of,
    "gradient_clip_val": GradientClipping.of,
    "limit_batches": LimitBatches.of,
    "max_time": parse_seconds,
    "run_dir": RunFolder.of,
    "val_check_interval": ValidationPolicy.of,
}


def check_values(root: Root, tree: Node, problems: list[str]) -> None:
    """Read every value whose meaning can be checked without building anything heavy."""
    for key, node in tree.value.items():
        parameter = root.parameters.get(key)
        if parameter is None or key in ("task", "data", "optimizer", "lr_scheduler") or _unreadable(node):
            continue
        try:
            value = _built(parameter.annotation, node)
            reader = READERS.get(key)
            if reader is not None and value is not None:
                reader(value)
        except ArgumentError:
            continue  # of the wrong type, which is reported already
        except (ValueError, TypeError) as error:
            cause = error if isinstance(error, ConfigError) else error.__cause__ or error
            problems.append(placed(node, key, str(cause)))


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
    """Let jsonargparse convert a value, and build it if it is a record of options."""
    kinds = [kind for member in branches(annotation) for kind in [built_class(member)] if kind is not None]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    parsed = parser.parse_object({"value": plain(node)}, env=False, defaults=False)
    if node.is_mapping and any(is_options(kind) for kind in kinds):
        return parser.instantiate(parsed).value
    return parsed.value
