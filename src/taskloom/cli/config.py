"""From layers to one checked configuration.

The order is: read, merge, spell out, resolve references, apply links, let jsonargparse judge, explain what it refused,
check what types cannot say. All problems of all of these come in one `ConfigError`. Nothing of the user's is built
here; classes are only imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from taskloom import callbacks
from taskloom.cli.command_line import CommandLine
from taskloom.cli.explain import Explainer
from taskloom.cli.interpolate import resolve_references
from taskloom.cli.layers import config_files, environment_layers, file_layers, merge
from taskloom.cli.links import Link, Links, links_of_tree, read_link
from taskloom.cli.locate import importable_path
from taskloom.cli.root import Root
from taskloom.cli.semantics import check_machine, check_names, check_optimizer, check_values
from taskloom.cli.show import as_yaml, with_sources
from taskloom.cli.tree import CLASS_PATH, INIT_ARGS, Node, class_arguments, class_name, plain
from taskloom.core.errors import ConfigError, explain

if TYPE_CHECKING:
    from taskloom.cli.stage import Stage

_META = ("config", "link", "print_config")


@dataclass
class Configuration:
    """A configuration that passed every check.

    Args:
        root: its schema.
        tree: the merged layers, every value with its source.
        parser: of jsonargparse, with the links that read built objects.
        values: what `parser` made of `tree`, defaults included.
        links: those of the command line, the files and the code.
    """

    root: Root
    tree: Node
    parser: ArgumentParser
    values: Namespace
    links: Links

    def as_dict(self) -> dict[str, Any]:
        """Return the values as plain data, classes as `class_path` and `init_args`."""
        text = self.parser.dump(self.values, skip_unset=False, skip_validation=True, skip_link_targets=True)
        found: dict[str, Any] = _with_options(self.values, yaml.safe_load(text))
        for name in _META:
            found.pop(name, None)
        return found

    def printed(self, with_origins: bool) -> str:
        """Return the configuration as YAML that can be fed back."""
        values = self.as_dict()
        links = [link.text for link in (*self.links.on_parse, *self.links.on_build) if link.compute is None]
        if links:
            values["link"] = links
        return with_sources(values, self.tree) if with_origins else as_yaml(values)

    def saved(self, folders: Sequence[Path]) -> str:
        """Return the YAML for the run's folder: every value, those that links took from built objects included.

        Classes that a project fixed are named, so that `task` can read the file as well as the project's own command.

        Args:
            folders: that the run imports from, beside the working folder.
        """
        values = self.as_dict()
        for name in ("ckpt_path", "restore", *self.root.stage_options):
            values.pop(name, None)
        self.links.add_built_values(values, self.tree)
        here = Path.cwd()
        absolute = dict.fromkeys(folder.resolve() for folder in folders)
        values["import_from"] = [
            str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
            for folder in absolute
            if folder != here
        ]
        for key, kind in self.root.fixed.items():
            values[key] = {CLASS_PATH: importable_path(kind), INIT_ARGS: values[key] or {}}
        return as_yaml(values)


def configure(
    root: Root,
    line: CommandLine,
    *,
    environment: Mapping[str, str],
    below: Sequence[Node],
    links: Sequence[Link],
    prog: str,
    stage: Stage,
) -> Configuration:
    """Read and check a configuration.

    Args:
        root: its schema.
        line: the command line.
        environment: the variables of the process.
        below: layers under the configuration files, the lowest first.
        links: those that a project wrote in code.
        prog: the program's name, for help.
        stage: the command; what a complete configuration must hold depends on it.

    Raises:
        ConfigError: with every problem that was found.
    """
    problems = list(line.problems)
    files = file_layers(config_files(line, environment), problems)
    variables = environment_layers(environment, problems)
    if problems:
        raise ConfigError(problems)  # what could not be read would only be reported again, as missing
    tree = merge([*below, *files, *variables, *line.layers], problems)
    _load_named(tree.value.get("callbacks"))
    tree = root.spelled(root.with_class_paths(tree))
    written = links_of_tree(tree.value.pop("link", None), problems)
    for text in line.links:
        try:
            written.append(read_link(text, "flag --link"))
        except ConfigError as error:
            problems.extend(error.problems)
    resolve_references(tree, lambda key: root.default_at(tree, key), lambda: root.known_keys(tree), problems)
    linked = Links([*links, *written], root, tree, problems)
    tree = linked.apply_on_parse(linked.without_built_targets(tree))
    parser, values = _judge(root, tree, linked, prog, problems, lenient=line.print_config is not None)
    check_names(tree, problems)
    check_values(tree, problems)
    if line.print_config is None:
        check_optimizer(root, tree, stage.needs, problems)
        if stage.execute is not None and values is not None and not problems:
            check_machine(tree, values.as_dict(), problems)
    if problems or values is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    return Configuration(root, tree, parser, values, linked)


def _load_named(node: Node | None) -> None:
    """Import our callbacks that are named without their module; jsonargparse finds a bare name only once it is."""
    if node is None:
        return
    if isinstance(node.value, str) and node.value in callbacks.__all__:
        getattr(callbacks, node.value)
    for inner in node.value.values() if node.is_mapping else node.value if node.is_list else ():
        _load_named(inner)


def _judge(
    root: Root, tree: Node, links: Links, prog: str, problems: list[str], lenient: bool
) -> tuple[ArgumentParser, Namespace | None]:
    """Let jsonargparse parse the tree; where it refuses, explain why."""
    explainer = Explainer(links.targets, root.names)
    parser = ArgumentParser(exit_on_error=False)
    refusal: Exception | None = None
    values: Namespace | None = None
    try:
        parser = root.parser(prog, require_task=not lenient)
        links.add_to(parser, tree)
        values = parser.parse_object(plain(_for_parser(root, tree)), env=False)
    except ConfigError as error:
        problems.extend(error.problems)
        return parser, None
    except Exception as error:  # importing the user's classes may raise anything
        refusal = error
    if refusal is not None:
        explain_tree(root, tree, explainer, lenient)
        problems.extend(explainer.problems)
        if not problems:
            if not isinstance(refusal, (ArgumentError, ValueError, TypeError, KeyError)):
                raise refusal
            problems.append(explain("The configuration was refused", why=" ".join(str(refusal).split())))
    return parser, values


def explain_tree(root: Root, tree: Node, explainer: Explainer, lenient: bool = False) -> None:
    """Explain every problem of a whole configuration."""
    for key, node in tree.value.items():
        parameter = root.parameters.get(key)
        if parameter is None:
            explainer.unknown(node, str(key), str(key), root.parameters, f"There is no key {str(key)!r}")
        elif key in root.fixed and names_another(node, root.fixed[key]):
            own = root.fixed[key].__name__
            why = f"the {key} of this command is {own}"
            fix = f"give its parameters (--{key}.NAME), or use `task` to choose a class"
            explainer.report(
                node, key, explain("No other class can be chosen here", got=class_name(node), why=why, fix=fix)
            )
        elif key in root.fixed:
            explainer.arguments(root.fixed[key], class_arguments(node), node, key)
        elif not (node.is_null and key in ("task", "data", "optimizer", "lr_scheduler")):
            explainer.value(node, parameter.annotation, key)
    for key, kind in root.fixed.items():
        if key not in tree.value:
            explainer.arguments(kind, {}, Node({}, "default"), key)
    task = tree.value.get("task")
    if "task" not in root.fixed and (task is None or task.is_null) and not lenient:
        explainer.missing(Node({}, "default"), "task", "The task is not named")


def names_another(node: Node, kind: type) -> bool:
    """Whether a node names a class other than `kind`; modules are not compared, a script calls its own `__main__`."""
    if not node.is_mapping:
        return not node.is_null and class_name(node).rpartition(".")[2] != kind.__name__
    return bool(class_name(node)) and class_name(node).rpartition(".")[2] != kind.__name__


def _for_parser(root: Root, tree: Node) -> Node:
    """Return the tree as the parser wants it: nothing explicitly null, no `init_args` around fixed classes."""
    found = {}
    for key, node in tree.value.items():
        if key in root.fixed and not names_another(node, root.fixed[key]):
            found[key] = Node(class_arguments(node), node.source)
        elif not (node.is_null and key in ("task", "data", "optimizer", "lr_scheduler")):
            found[key] = node
    return Node(found, tree.source)


def _with_options(value: Any, dumped: Any) -> Any:
    """Return dumped data in which options that jsonargparse wrote as a text are data again.

    It serialises a value by the first member of its union that accepts it, and a text accepts everything: the
    `RunFolder` of a parameter `str | Path | RunFolder` would be saved as `"Namespace(root=...)"`.
    """
    if isinstance(value, Namespace) and isinstance(dumped, str):
        return {
            name: _with_options(each, str(each) if isinstance(each, Path) else each)
            for name, each in vars(value).items()
        }
    if isinstance(value, (Namespace, dict)) and isinstance(dumped, dict):
        inner = vars(value) if isinstance(value, Namespace) else value
        return {name: _with_options(inner.get(name), each) for name, each in dumped.items()}
    if isinstance(value, list) and isinstance(dumped, list) and len(value) == len(dumped):
        return [_with_options(*pair) for pair in zip(value, dumped, strict=True)]
    return dumped
