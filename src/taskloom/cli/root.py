"""The keys of a stage configuration and the jsonargparse parser that stands for them.

`Trainer`'s parameters are root keys; `task`, `data`, `optimizer` and `lr_scheduler` hold classes. The parser is the
authority on types, defaults, help and instantiation; the table of parameters beside it lets the other parts name keys.
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from taskloom.checkpoint import RestorePolicy
from taskloom.cli.locate import ClassNotFoundError, Maker, import_path, locate
from taskloom.cli.schema import UNTYPED, Parameter, add_class, branches, built_class, is_options, item_type, parameters
from taskloom.cli.tree import CLASS_PATH, INIT_ARGS, Node, class_arguments, class_name, find, node_of, split_key
from taskloom.core.data import DataModule
from taskloom.core.errors import ABSENT
from taskloom.core.task import TaskModule
from taskloom.optim.registry import OPTIMIZERS, SCHEDULERS
from taskloom.resolve import REGISTRIES
from taskloom.trainer import Trainer

if TYPE_CHECKING:
    from jsonargparse._core import ArgumentGroup

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


@dataclass
class Root:
    """What may stand at the top of a configuration.

    Args:
        task: the task's class, or the base of the classes that may be chosen.
        data: the same for the data.
        choose_task: whether `--task CLASS` chooses a subclass.
        choose_data: whether `--data CLASS` chooses a subclass.
        extra: parameters that a stage or a project adds.
        extra_help: what they are for, by name.
        stage_options: those of `extra` that belong to the stage and not to the configuration.
    """

    task: type = TaskModule
    data: type | None = DataModule
    choose_task: bool = True
    choose_data: bool = True
    extra: dict[str, Parameter] = field(default_factory=dict)
    extra_help: dict[str, str] = field(default_factory=dict)
    stage_options: Collection[str] = ()

    def __post_init__(self) -> None:
        self.parameters: dict[str, Parameter] = {
            **parameters(Trainer),
            "task": Parameter("task", self.task, ABSENT),
            **({"data": Parameter("data", self.data | None, None)} if self.data else {}),
            "optimizer": Parameter("optimizer", OptimizerFactory | None, None),
            "lr_scheduler": Parameter("lr_scheduler", SchedulerFactory | None, None),
            "import_from": Parameter("import_from", str | list[str] | None, None),
            "ckpt_path": Parameter("ckpt_path", str | None, None),
            "restore": Parameter("restore", RestorePolicy | None, None),
            **self.extra,
        }
        self.names: dict[str, Mapping[str, Maker]] = {"optimizer": OPTIMIZERS, "lr_scheduler": SCHEDULERS}

    @property
    def fixed(self) -> dict[str, type]:
        """Return the classes that a project fixed, by key."""
        found = {} if self.choose_task else {"task": self.task}
        if self.data is not None and not self.choose_data:
            found["data"] = self.data
        return found

    def parser(self, prog: str, *, require_task: bool = True) -> ArgumentParser:
        """Build the parser that judges configurations.

        Args:
            prog: the program's name.
            require_task: refuse a configuration without a task.

        Raises:
            ValueError: a fixed class has a required parameter without a type.
        """
        parser = ArgumentParser(prog=prog, exit_on_error=False, print_config=None)
        add_meta_arguments(parser)
        parser.add_class_arguments(Trainer, None)
        for key, base in (("task", self.task), ("data", self.data)):
            if key in self.fixed:
                add_class(parser, self.fixed[key], key)
            elif base is not None:
                parser.add_subclass_arguments(base, key, required=key == "task" and require_task)
        for key, base, given in (("optimizer", Optimizer, "params"), ("lr_scheduler", LRScheduler, "optimizer")):
            # not instantiated here: the task gives the first argument, when its parameters exist
            parser.add_subclass_arguments(base, key, skip={given}, instantiate=False)
        self.add_run_arguments(parser)
        return parser

    def add_run_arguments(self, container: ArgumentParser | ArgumentGroup) -> None:
        """Add what belongs to one run: the checkpoint, and what a stage or a project adds."""
        container.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            metavar="PATH",
            help="Checkpoint to continue from or to evaluate: a path, a run's folder, `last` or `best`.",
        )
        container.add_argument(
            "--restore",
            type=RestorePolicy | None,
            default=None,
            help="What to take from the checkpoint, everything by default: --restore.only model,optimizer,loops, "
            "--restore.set optimizer.lr=1e-5, --restore.rename 'encoder.*: backbone.*', --restore.ignore 'head.*'.",
        )
        for parameter in self.extra.values():
            container.add_argument(
                f"--{parameter.name}",
                type=parameter.annotation,
                default=parameter.default,
                help=self.extra_help.get(parameter.name),
            )

    def with_class_paths(self, tree: Node) -> Node:
        """Replace short names (`adamw`, or `fsdp` as the `class_path` of a strategy) by import paths."""
        found = dict(tree.value)
        for key, known in self.names.items():
            node = found.get(key)
            if node is not None and class_name(node) in known:
                path = Node(import_path(known[class_name(node)]), node.source)
                found[key] = Node({**node.value, CLASS_PATH: path}, node.source) if node.is_mapping else path
        for kind, registry in REGISTRIES.items():
            node = found.get(kind)
            if node is not None and node.is_mapping and registry.canonical(class_name(node)) in registry.names():
                found[kind] = _with_class(node, registry.load(class_name(node)))
        for key, node in found.items():
            parameter = self.parameters.get(key)
            if parameter is not None and _is_one_for_a_list(node, parameter.annotation):
                found[key] = Node([node], node.source)
        return Node(found, tree.source)

    def kind_at(self, tree: Node, key: str) -> Maker | None:
        """Return the class (or the function that makes its object) at a dotted key, or `None`."""
        if key in self.fixed:
            return self.fixed[key]
        parameter, node = self.parameter_at(tree, key), find(tree, key)
        bases = (
            []
            if parameter is None
            else [
                kind for member in branches(parameter.annotation) for kind in [built_class(member)] if kind is not None
            ]
        )
        if not bases and parameter is not None:
            bases = [
                kind
                for member in branches(parameter.annotation)
                if item_type(member) not in (ABSENT, UNTYPED)
                for part in branches(item_type(member))
                for kind in [built_class(part)]
                if kind is not None
            ]
        name = class_name(node) if node is not None else ""
        if not name:
            return bases[0] if node is not None and len(bases) == 1 and is_options(bases[0]) else None
        try:
            return locate(name, bases)
        except ClassNotFoundError:
            return None

    def parameter_at(self, tree: Node, key: str) -> Parameter | None:
        """Return the parameter at a dotted key, following the classes that the configuration names."""
        parts = split_key(key)
        if len(parts) == 1:
            return self.parameters.get(parts[0])
        above = ".".join(parts[:-1])
        if parts[-1].isdigit():
            return self.parameter_at(tree, above)
        kind = self.kind_at(tree, above)
        return None if kind is None else parameters(kind).get(parts[-1])

    def default_at(self, tree: Node, key: str) -> Node | None:
        """Return the default of a parameter that no layer sets."""
        parameter = self.parameter_at(tree, key)
        if (
            parameter is None
            or parameter.required
            or not isinstance(parameter.default, (str, int, float, bool, list, tuple, dict, type(None)))
        ):
            return None
        return node_of(parameter.default, "default")

    def known_keys(self, tree: Node) -> Collection[str]:
        """Return the dotted keys that exist, those of named classes included."""
        found = list(self.parameters)
        for key in ("task", "data", "optimizer", "lr_scheduler"):
            kind = self.kind_at(tree, key)
            found += [] if kind is None else [f"{key}.{name}" for name in parameters(kind)]
        return found

    def spelled(self, tree: Node) -> Node:
        """Give keys that came from environment variables the case of the parameters they mean."""
        return self._spell(tree, self.parameters, tree, "")

    def _spell(self, node: Node, known: Mapping[str, Parameter], tree: Node, key: str) -> Node:
        if not node.is_mapping:
            return node
        found: dict[Any, Node] = {}
        for name, item in node.value.items():
            exact = next((one for one in known if item.folded and one.lower() == name), name)
            below = f"{key}.{exact}" if key else exact
            kind = self.kind_at(tree, below) if item.is_mapping and isinstance(name, str) else None
            if kind is not None and item.is_spec:
                spelled = self._spell(Node(class_arguments(item), item.source), parameters(kind), tree, below)
                item = Node({**item.value, "init_args": spelled}, item.source)
            elif kind is not None:
                item = self._spell(item, parameters(kind), tree, below)
            found[exact] = item
        return Node(found, node.source)


def _with_class(node: Node, kind: type) -> Node:
    """Put a class in place of its short name; a precision's name (`16-mixed`) is the dtype too."""
    arguments = class_arguments(node)
    dtype = class_name(node).rpartition("-")[0]
    if "dtype" in parameters(kind) and dtype:
        arguments.setdefault("dtype", Node(dtype, node.source))
    named = {CLASS_PATH: Node(import_path(kind), node.source), INIT_ARGS: Node(arguments, node.source)}
    return Node({**node.value, **named}, node.source)


def _is_one_for_a_list(node: Node, annotation: Any) -> bool:
    """Whether a single class stands where only a list of classes is taken, as in `--callbacks EarlyStopping`."""
    members = branches(annotation)
    lists = [member for member in members if item_type(member) not in (ABSENT, UNTYPED)]
    wanted = any(built_class(part) is not None for member in lists for part in branches(item_type(member)))
    others = [member for member in members if member not in lists]
    alone = not any(member in (str, Any) or built_class(member) is not None for member in others)
    return wanted and alone and (node.is_spec or (isinstance(node.value, str) and not node.is_null))


def add_meta_arguments(container: ArgumentParser | ArgumentGroup) -> None:
    """Add what decides where values come from."""
    container.add_argument(
        "--config", action="config", metavar="FILE", help="Configuration file; may be repeated, later ones win."
    )
    container.add_argument(
        "--import_from",
        type=str | list[str] | None,
        default=None,
        metavar="FOLDER",
        help="Folder, or a list of them, that classes may be imported from, beside the working folder and those of the "
        "configuration files. A saved configuration names those that its run used.",
    )
    container.add_argument(
        "--link",
        default=SUPPRESS,
        metavar="SOURCE=TARGET",
        help="Take a value from a parameter or from an attribute of the built object: "
        "data.num_classes=task.num_classes. May be repeated.",
    )
    container.add_argument(
        "--print_config",
        nargs="?",
        default=SUPPRESS,
        metavar="sources",
        help="Print the resulting configuration and exit; with =sources also where each value came from.",
    )
