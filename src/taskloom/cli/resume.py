"""The configuration of a checkpoint as the lowest layer: `task test --ckpt_path X` needs no other argument."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from taskloom.cli.command_line import CommandLine
from taskloom.cli.layers import config_files, environment_layers, file_layers, merge
from taskloom.cli.tree import Node, find, plain, walk
from taskloom.cli.yaml_file import read_file
from taskloom.core.errors import CheckpointError, ConfigError
from taskloom.core.policies import RunFolder
from taskloom.loop.folder import find_checkpoint

_FILE = "config.yaml"


def checkpoint_layer(
    line: CommandLine, environment: Mapping[str, str], stage: str, known: Collection[str], problems: list[str]
) -> Node | None:
    """Return the configuration beside the checkpoint that `--ckpt_path` names, if there is one.

    For `fit` it is used only when no configuration file is given: training goes on with what the file says, and an old
    list of callbacks must not come back.
    """
    if stage == "fit" and config_files(line, environment):
        return None
    named = [node for tree in line.layers for node in [find(tree, "ckpt_path")] if node is not None]
    text = plain(named[-1]) if named else environment.get("TASKLOOM_CKPT_PATH")
    if text is None:
        return None
    path = _checkpoint(str(text), line, environment) / _FILE
    if not path.is_file():
        return None
    try:
        saved = read_file(str(path))
        # a project's own command may have written options that this one does not have
        return Node({key: node for key, node in saved.value.items() if key in known}, saved.source)
    except ConfigError as error:
        problems.extend(error.problems)
        return None


def _checkpoint(wanted: str, line: CommandLine, environment: Mapping[str, str]) -> Path:
    """Return the folder that `last`, `best` or a path stands for; what is wrong with it, the Trainer will tell."""
    layers = [*file_layers(config_files(line, environment), []), *environment_layers(environment, []), *line.layers]
    run_dir = find(merge(layers, []), "run_dir")
    folder = plain(run_dir) if run_dir is not None else "runs"
    try:
        choice = RunFolder(**folder) if isinstance(folder, dict) else RunFolder(folder)
        return find_checkpoint(wanted, choice, None, hashes=False).path  # the Trainer compares them, once
    except (CheckpointError, ImportError, ValueError, TypeError, OSError):
        return Path(wanted)


def print_changes(saved: Node, tree: Node) -> None:
    """Say on stderr which values differ from those that the checkpoint was made with."""
    for key, node in walk(tree):
        if node.is_mapping or node.is_list or node.source.startswith("link "):
            continue
        before = find(saved, key)
        if before is not None and before.source != node.source and str(plain(before)) != str(plain(node)):
            print(f"{key}: {plain(before)!r} in the checkpoint, now {plain(node)!r} ({node.source})", file=sys.stderr)
