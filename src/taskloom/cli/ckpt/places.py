"""What a person means by a path on the command line."""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from taskloom.checkpoint.manifest import MANIFEST
from taskloom.checkpoint.place import Place, as_path, children, is_file, is_folder
from taskloom.core.errors import CheckpointError, explain
from taskloom.core.policies import RunFolder
from taskloom.loop.folder import CHECKPOINTS, find_checkpoint, runs_below

RUNS = "runs"


def add_path(parser: ArgumentParser, name: str = "path", *, several: bool = False) -> None:
    """Add a checkpoint, or several, as positional arguments."""
    what = "checkpoint, run (its newest good checkpoint), `last` or `best`"
    if several:
        parser.add_argument(name, nargs="+", metavar=name.upper(), help=f"{what}; several may be given")
    else:
        parser.add_argument(name, metavar=name.upper(), help=what)


def checkpoint_at(text: str) -> Place:
    """Return the checkpoint that is meant; of several that could be, says on stderr which.

    Raises:
        CheckpointError: there is none.
    """
    path = as_path(text)
    if text not in ("last", "best") and not is_file(path / MANIFEST) and _has_checkpoints(path):
        path = path.parent if path.name == CHECKPOINTS else path
        if not is_folder(path / CHECKPOINTS):
            raise CheckpointError(
                explain(f"{path} holds several checkpoints", fix=f"pass one of {', '.join(_names(path)[-5:])} in it")
            )
        text = str(path)
    found = find_checkpoint(text, RunFolder(RUNS), None)
    for line in found.lines():
        print(line, file=sys.stderr)
    return found.path


def folders_at(text: str) -> list[Place]:
    """Return the folders of checkpoints that a run, a folder of runs, or such a folder itself stands for.

    Raises:
        CheckpointError: there is none.
    """
    path = as_path(text)
    if is_file(path / MANIFEST):
        return [path.parent]
    if path.name == CHECKPOINTS or (_has_checkpoints(path) and not is_folder(path / CHECKPOINTS)):
        return [path]
    found = [run / CHECKPOINTS for run in runs_below(RunFolder(text))]
    if not found and is_folder(path / CHECKPOINTS):
        found = [path / CHECKPOINTS]  # nothing but what a killed save has left
    if not found:
        raise CheckpointError(
            explain(f"There are no checkpoints in {text}", fix="pass a run, or the folder that runs are in")
        )
    return found


def folder_at(text: str) -> Place:
    """Return the one folder of checkpoints that is meant.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    found = folders_at(text)
    if len(found) > 1:
        runs = ", ".join(str(folder.parent) for folder in found[:4])
        raise CheckpointError(explain(f"{text} holds {len(found)} runs", fix=f"pass one of them: {runs}"))
    return found[0]


def _has_checkpoints(path: Place) -> bool:
    return bool(_names(path))


def _names(path: Place) -> list[str]:
    return [child.name for child, is_a_folder in children(path) if is_a_folder and is_file(child / MANIFEST)]
