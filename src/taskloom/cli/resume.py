"""The configuration of a checkpoint as the lowest layer: `task test --ckpt_path X` needs no other argument.

A configuration names classes, and running it runs their code. Those are the project's: a folder that came with the
checkpoint is never imported from, and `load_from_checkpoint` in Python imports nothing at all.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from taskloom.checkpoint.place import Place, is_file, is_remote
from taskloom.cli.command_line import CommandLine
from taskloom.cli.layers import config_files, environment_layers, file_layers, import_folders, merge
from taskloom.cli.locate import Maker
from taskloom.cli.root import Root
from taskloom.cli.schema import parameters
from taskloom.cli.tree import INIT_ARGS, Node, class_arguments, class_name, find, plain, walk
from taskloom.cli.yaml_file import read_file
from taskloom.core.errors import CheckpointError, ConfigError, explain
from taskloom.core.policies import RunFolder
from taskloom.loop.folder import find_checkpoint, run_folder_of

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
    checkpoint = _checkpoint(str(text), line, environment)
    path = checkpoint / _FILE
    try:
        if not is_file(path):
            return None
        saved = read_file(path)
    except OSError:  # the Trainer will tell
        return None
    except ConfigError as error:
        problems.extend(error.problems)
        return None
    brought = _brought_folders(saved, run_folder_of(checkpoint) or checkpoint)
    problems.extend(brought)
    if brought:
        return None
    # a project's own command may have written options that this one does not have
    return Node({key: node for key, node in saved.value.items() if key in known}, saved.source)


def without_stale(saved: Node, root: Root) -> Node:
    """Leave out arguments of the checkpoint's configuration that the task or the data no longer take, and say so."""
    found = dict(saved.value)
    for key in ("task", "data"):
        node, kind = found.get(key), root.kind_at(saved, key) if key in found else None
        if node is None or kind is None or not node.is_mapping or _takes_anything(kind):
            continue
        given, taken = class_arguments(node), parameters(kind)
        for name in given:
            if name not in taken:
                what = f"{key}.{name}: {plain(given[name])!r} in the checkpoint is left out"
                print(f"{what}: {class_name(node) or kind.__name__} does not take it", file=sys.stderr)
        kept = Node({name: item for name, item in given.items() if name in taken}, node.source)
        found[key] = Node({**node.value, INIT_ARGS: kept}, node.source) if node.is_spec else kept
    return Node(found, saved.source)


def _takes_anything(kind: Maker) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in inspect.signature(kind).parameters.values())


def _brought_folders(saved: Node, run_folder: Place) -> list[str]:
    """Return what is wrong with the folders that a saved configuration imports from."""
    if is_remote(run_folder):
        return []
    inside = [
        folder for folder in import_folders([saved]) if folder.resolve().is_relative_to(Path(run_folder).resolve())
    ]
    return [
        f"{saved.source}: import_from: "
        + explain(
            "Classes are not imported from a folder which came with the checkpoint",
            got=str(folder),
            why="that would run its code",
            fix="pass your own classes with --task and --import_from, or --config FILE",
        )
        for folder in inside
    ]


def _checkpoint(wanted: str, line: CommandLine, environment: Mapping[str, str]) -> Path:
    """Return the folder that `last`, `best` or a path stands for; what is wrong with it, the Trainer will tell."""
    layers = [*file_layers(config_files(line, environment), []), *environment_layers(environment, []), *line.layers]
    run_dir = find(merge(layers, []), "run_dir")
    folder = plain(run_dir) if run_dir is not None else "runs"
    try:
        options = folder.get("init_args", folder) if isinstance(folder, dict) else {"root": folder}
        choice = RunFolder(**options)
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
