"""`TaskCLI`: the stage commands, as the program `task` and as the own command of a project.

    if __name__ == "__main__":
        TaskCLI(MyTask, MyData)

gives a project `python train.py fit|validate|test|predict|check` with the parameters of its two classes as `--task.*`
and `--data.*`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from taskloom.checkpoint import RestorePolicy
from taskloom.cli.command_line import CommandLine, read_command_line
from taskloom.cli.commands import COMMANDS, overview
from taskloom.cli.config import Configuration, configure
from taskloom.cli.exits import exit_cleanly
from taskloom.cli.help import print_help
from taskloom.cli.layers import config_files, environment_layers, file_layers, import_folders
from taskloom.cli.links import Link
from taskloom.cli.locate import importable, locate
from taskloom.cli.resume import checkpoint_layer, print_changes, without_stale
from taskloom.cli.root import Root
from taskloom.cli.schema import Parameter, parameters
from taskloom.cli.tree import Node, node_of
from taskloom.core.data import DataModule
from taskloom.core.errors import ConfigError, explain, nearest
from taskloom.core.seed import seed_everything
from taskloom.core.task import TaskModule
from taskloom.trainer import Trainer

if TYPE_CHECKING:
    from taskloom.cli.stage import Stage

STAGES = {name: command for name, command in COMMANDS.items() if command.stage}


class OwnOptions:
    """Collects the options that a project adds beside those of `Trainer`, task and data."""

    def __init__(self) -> None:
        self.parameters: dict[str, Parameter] = {}
        self.help: dict[str, str] = {}

    def add_argument(self, name: str, *, type: Any = str, default: Any = None, help: str = "") -> None:  # noqa: A002 - argparse's names
        """Add `--name`; its value is in `TaskCLI.options`.

        Args:
            name: with or without the dashes.
            type: any type that jsonargparse reads.
            default: where nothing sets it; `None` makes the type optional.
            help: for `--help`.
        """
        key = name.lstrip("-")
        self.parameters[key] = Parameter(key, type if default is not None else type | None, default)
        self.help[key] = help


class TaskCLI:
    """Read a configuration, build what it describes, run a stage.

    Args:
        task_class: the task, or with `subclass_mode_task` the base of those that `--task` may choose. Any `TaskModule`
            by default.
        data_class: the same for the data.
        args: the command line without the program's name; by default that of the process.
        run: run the stage; if False the objects are only built, and the stage is left out of `args`.
        trainer_defaults: values for the `Trainer` below every other layer.
        seed_default: the seed where nothing sets one.
        links: `(source, target)` or `(sources, target, compute)`, as `link` takes them.
        subclass_mode_task: let `--task CLASS` choose a subclass of `task_class`.
        subclass_mode_data: let `--data CLASS` choose a subclass of `data_class`.
        prog: the program's name in help; by default that of the script.

    Attributes:
        configuration: the checked configuration; `config` is its values as plain data.
        trainer: the built trainer, beside `task` and `data`.
        options: values of what `add_arguments` added and of what the stage adds.
        result: what the stage returned.

    Raises:
        ConfigError: the configuration has problems and `args` were given. With the command line of the process they are
            printed and the process exits with 2; Ctrl-C exits with 130.
    """

    trainer: Trainer
    task: TaskModule
    data: DataModule | None = None
    configuration: Configuration
    ckpt_path: str | None
    restore: RestorePolicy | None

    def __init__(
        self,
        task_class: type[TaskModule] | None = None,
        data_class: type[DataModule] | None = None,
        *,
        args: Sequence[str] | None = None,
        run: bool = True,
        trainer_defaults: Mapping[str, Any] | None = None,
        seed_default: int | None = None,
        links: Sequence[tuple[Any, ...]] = (),
        subclass_mode_task: bool = False,
        subclass_mode_data: bool = False,
        prog: str | None = None,
    ) -> None:
        self.task_class, self.data_class = task_class, data_class
        self.choose_task = subclass_mode_task or task_class is None
        self.choose_data = subclass_mode_data or (data_class is None and self.choose_task)
        self.trainer_defaults = {**({} if seed_default is None else {"seed": seed_default}), **(trainer_defaults or {})}
        self.links: list[Link] = []
        for link in links:
            self.link(*link)
        self.options: dict[str, Any] = {}
        self.result: Any = None
        name = prog or Path(sys.argv[0]).name
        if args is not None:
            self._start(list(args), run, name)
        else:
            exit_cleanly(lambda: self._start(sys.argv[1:], run, name))

    def link(self, source: str | Sequence[str], target: str, compute: Callable[..., Any] | None = None) -> None:
        """Let `target` take its value from `source`; call it in an override of `add_arguments`, or pass `links`.

        Args:
            source: a parameter (`data.batch_size`) or an attribute of the built object (`data.num_classes`); several
                with `compute`.
            target: a parameter of the task or the data.
            compute: makes the value of those of the sources.
        """
        sources = (source,) if isinstance(source, str) else tuple(source)
        self.links.append(Link(sources, target, "code", compute))

    def add_arguments(self, parser: OwnOptions) -> None:
        """Add options of your own: `parser.add_argument("--notify", type=str)`; override."""

    def before_instantiate(self) -> None:
        """The configuration is checked and nothing is built yet; override."""

    def after_instantiate(self) -> None:
        """`trainer`, `task` and `data` exist and the stage has not begun; override."""

    @property
    def config(self) -> dict[str, Any]:
        """The checked values as plain data."""
        return self.configuration.as_dict()

    def _start(self, args: list[str], run: bool, prog: str) -> None:
        name = "fit"
        if run:
            if not args or args[0] in ("-h", "--help"):
                print(overview(prog, STAGES))
                return
            name = args.pop(0)
            if name not in STAGES:
                raise ConfigError(
                    [
                        f"command {name}: "
                        + explain("There is no such command", got=name, fix=f"use one of {', '.join(STAGES)}")
                        + nearest(name, STAGES)
                    ]
                )
        stage: Stage = import_module(STAGES[name].module).STAGE
        line = read_command_line(args)
        environment = dict(os.environ)
        root = self._root(stage)
        saved = checkpoint_layer(line, environment, stage.name, root.parameters, line.problems)
        files = config_files(line, environment)
        layers = [
            *([saved] if saved else []),
            *file_layers(files, []),
            *environment_layers(environment, []),
            *line.layers,
        ]
        self._folders = [*(Path(path).parent for path, _ in files), *import_folders(layers)]
        with importable([Path.cwd(), *self._folders]):
            if self._configure(line, environment, root, saved, stage, f"{prog} {name}" if run else prog):
                self._run(stage, run)

    def _configure(
        self,
        line: CommandLine,
        environment: Mapping[str, str],
        root: Root,
        saved: Node | None,
        stage: Stage,
        prog: str,
    ) -> bool:
        """Read and check the configuration; return False when help or the configuration was all that was asked for."""
        saved = without_stale(saved, root) if saved is not None else None
        below = [node_of(self.trainer_defaults, "trainer_defaults"), *([saved] if saved else [])]
        if line.help_for is not None:
            print_help(root, line, below, environment, prog, stage.description)
            return False
        self.configuration = configure(
            root, line, environment=environment, below=below, links=self.links, prog=prog, stage=stage
        )
        if line.print_config is not None:
            print(self.configuration.printed(line.print_config == "sources"), end="")
            return False
        if saved is not None:
            print_changes(saved, self.configuration.tree)
        return True

    def _root(self, stage: Stage) -> Root:
        own = OwnOptions()
        self.add_arguments(own)
        options = {**{key: parameter for key, (parameter, _) in stage.options.items()}, **own.parameters}
        texts = {**{key: text for key, (_, text) in stage.options.items()}, **own.help}
        data = self.data_class or (DataModule if self.choose_data else None)
        return Root(
            task=self.task_class or TaskModule,
            data=data,
            choose_task=self.choose_task,
            choose_data=self.choose_data,
            extra=options,
            extra_help=texts,
            stage_options=tuple(stage.options),
        )

    def _run(self, stage: Stage, run: bool) -> None:
        values = self.configuration.values
        self.options = {key: values[key] for key in self.configuration.root.extra}
        self.ckpt_path, self.restore = values["ckpt_path"], None
        if stage.inspect is not None:
            stage.inspect(self)
            return
        self.before_instantiate()
        self._build()
        self.after_instantiate()
        if run and stage.execute is not None:
            stage.execute(self)

    def _build(self) -> None:
        config = self.configuration
        if config.values["seed"] is not None:
            seed_everything(config.values["seed"])
        try:
            built = config.parser.instantiate(config.values)
        except ValueError as error:
            if isinstance(error.__cause__, ConfigError):  # a link, reported through jsonargparse
                raise error.__cause__ from None
            raise
        self.restore = built["restore"]
        self.task, self.data = built["task"], built["data"] if config.root.data is not None else None
        self.trainer = Trainer(**{name: built[name] for name in parameters(Trainer)})
        self.trainer.config_text = config.saved(self._folders)
        if built["optimizer"] is not None:
            self.task.set_default_optimizer(_factory(built["optimizer"]), _factory(built["lr_scheduler"]))


def _factory(chosen: Namespace | None) -> Any:
    """Return what makes an optimizer of parameters, or a schedule of an optimizer: a class and its other arguments."""
    if chosen is None:
        return None
    return partial(locate(chosen["class_path"], []), **chosen.get("init_args", {}))
