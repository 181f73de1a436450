"""All layers of a configuration, gathered and merged.

Precedence, lowest first: defaults of the code < `trainer_defaults` of a `TaskCLI` < the configuration of a checkpoint <
files in the order they are named < environment variables < flags in the order they are typed. Defaults of signatures
are not a layer: jsonargparse fills them in where no layer has a value, so a default never beats one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from taskloom.cli.command_line import CommandLine
from taskloom.cli.tree import Node, find, nested, overlay, plain
from taskloom.cli.yaml_file import read_file, read_text
from taskloom.core.errors import ConfigError

PREFIX = "TASKLOOM_"
# Variables with our prefix that are no configuration keys.
RESERVED = frozenset({"TASKLOOM_CONFIG", "TASKLOOM_HOME"})


def config_files(line: CommandLine, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (path, where it was named) of every configuration file, `TASKLOOM_CONFIG` first."""
    named = [(path, "env TASKLOOM_CONFIG") for path in environment.get("TASKLOOM_CONFIG", "").split(",") if path]
    return [*named, *((path, "flag --config") for path in line.configs)]


def environment_layers(environment: Mapping[str, str], problems: list[str]) -> list[Node]:
    """Return one tree per `TASKLOOM_*` variable: `TASKLOOM_TASK__LR` sets `task.lr`, in any case."""
    layers = []
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in RESERVED:
            continue
        text, source = environment[name], f"env {name}"
        value = Node(text, source)
        if text.lstrip()[:1] in ("[", "{"):
            try:
                value = read_text(text, source, source)
            except ConfigError as error:
                problems.extend(error.problems)
        tree = nested(name.removeprefix(PREFIX).lower().replace("__", "."), value)
        layers.append(_folded(tree))
    return layers


def import_folders(layers: Sequence[Node]) -> list[Path]:
    """Return the folders that `import_from` names; they are needed before anything else can be understood."""
    node = find(merge(layers, []), "import_from")
    if node is None or node.is_null:
        return []
    return [Path(str(folder)) for folder in (plain(node) if node.is_list else [node.value])]


def merge(layers: Sequence[Node], problems: list[str]) -> Node:
    """Merge layers, the lowest first."""
    merged = Node({}, "default")
    for layer in layers:
        merged = overlay(merged, layer, problems)
    return merged


def file_layers(files: Sequence[tuple[str, str]], problems: list[str]) -> list[Node]:
    """Read the files; those that cannot be read are reported and left out."""
    layers = []
    for path, _ in files:
        try:
            layers.append(read_file(path))
        except ConfigError as error:
            problems.extend(error.problems)
    return layers


def _folded(tree: Node) -> Node:
    if not tree.is_mapping:
        return Node(tree.value, tree.source, folded=True, partial=tree.partial)
    return Node(
        {key: _folded(item) for key, item in tree.value.items()}, tree.source, folded=True, partial=tree.partial
    )
