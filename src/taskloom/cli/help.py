"""`--help` of a stage, and `--task.help` of a class."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Mapping, Sequence

from jsonargparse import ArgumentParser

from taskloom.cli.command_line import CommandLine
from taskloom.cli.layers import PREFIX, config_files, environment_layers, file_layers, merge
from taskloom.cli.locate import ClassNotFoundError, Maker, import_path, locate, subclasses
from taskloom.cli.root import Root, add_meta_arguments
from taskloom.cli.schema import add_class, branches, built_class, hide_class_help, item_type
from taskloom.cli.tree import Node
from taskloom.core.errors import ABSENT, ConfigError, explain, nearest
from taskloom.trainer import Trainer

_EPILOG = (
    "Every key may stand in a configuration file, in an environment variable "
    f"({PREFIX}MAX_EPOCHS, {PREFIX}TASK__LR), or on the command line. "
    "Defaults < files in order < environment < flags. "
    "A list grows with --callbacks+ CLASS and shrinks with --callbacks- CLASS; ${key} takes the value of another key. "
    "--KEY.help CLASS describes the parameters of a class: --task.help my_task.MyTask, --optimizer.help adamw."
)


def print_help(
    root: Root, line: CommandLine, below: Sequence[Node], environment: Mapping[str, str], prog: str, description: str
) -> None:
    """Print the help that was asked for.

    When the other arguments name the task or the data, the help lists the parameters of those classes too.

    Raises:
        ConfigError: help was asked for a key or a class that does not exist.
    """
    problems: list[str] = []
    layers = [
        *below,
        *file_layers(config_files(line, environment), problems),
        *environment_layers(environment, problems),
        *line.layers,
    ]
    tree = root.spelled(root.with_class_paths(merge(layers, problems)))
    if line.help_for:
        _class_help(root, line, tree, prog)
        return
    shown = {
        key: kind
        for key in ("task", "data")
        if key not in root.fixed
        for kind in [root.kind_at(tree, key)]
        if kind is not None
    }
    _stage_parser(root, prog, description, {**root.fixed, **shown}).print_help()


def _stage_parser(root: Root, prog: str, description: str, shown: Mapping[str, Maker]) -> ArgumentParser:
    """Return a parser that is only good for its help: what people look for first comes first, and once."""
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config FILE] [--KEY VALUE ...]",
        description=description,
        epilog=_EPILOG,
        exit_on_error=False,
        print_config=None,
    )
    add_meta_arguments(parser.add_argument_group("Configuration"))
    group = parser.add_argument_group("Task and data")
    for key, base in (("task", root.task), ("data", root.data)):
        if base is not None and key not in shown:
            text = f"Import path of a {base.__name__}; its parameters follow as --{key}.NAME."
            group.add_argument(f"--{key}", default=SUPPRESS, metavar="CLASS", help=text)
    for key, kind in shown.items():
        add_class(parser, kind, key, lenient=True)
    group = parser.add_argument_group("Optimizer and schedule, for a task without configure_optimizers")
    for key, names in root.names.items():
        text = f"{', '.join(sorted(names))}, or an import path; its parameters follow as --{key}.NAME."
        group.add_argument(f"--{key}", default=SUPPRESS, metavar="NAME", help=text)
    root.add_run_arguments(parser.add_argument_group("Run"))
    parser.add_class_arguments(Trainer, None)
    hide_class_help(parser)
    return parser


def _class_help(root: Root, line: CommandLine, tree: Node, prog: str) -> None:
    key = line.help_for or ""
    parameter = root.parameter_at(tree, key)
    annotations = (
        []
        if parameter is None
        else [
            part
            for member in branches(parameter.annotation)
            for part in (branches(item_type(member)) if item_type(member) is not ABSENT else (member,))
        ]
    )
    bases = list(dict.fromkeys(kind for part in annotations for kind in [built_class(part)] if kind is not None))
    if not bases:
        raise ConfigError(
            [
                f"flag --{key}.help: "
                + explain(f"There is no class to choose at {key!r}", fix=f"{prog} --help")
                + nearest(key, root.known_keys(tree))
            ]
        )
    if line.help_class is None:
        kind = root.kind_at(tree, key)
    else:
        known = root.names.get(key, {})
        try:
            kind = known[line.help_class] if line.help_class in known else locate(line.help_class, bases)
        except ClassNotFoundError as error:
            raise ConfigError([f"flag --{key}.help: {error}"]) from error
    if kind is None:
        names = sorted(import_path(found) for found in subclasses(bases) if found not in bases) or [
            "none is imported yet"
        ]
        print(
            f"usage: {prog} --{key}.help CLASS\n\nKnown classes, beside those that an import path leads to:\n"
            + "\n".join(f"  {name}" for name in [*root.names.get(key, ()), *names])
        )
        return
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} --{key} {import_path(kind)} [--{key}.NAME VALUE ...]",
        exit_on_error=False,
        print_config=None,
    )
    add_class(parser, kind, key, skip=1 if key in root.names else 0, lenient=True)
    parser.print_help()
