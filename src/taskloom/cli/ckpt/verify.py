"""`task ckpt verify`: whether checkpoints are what was written."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskloom.cli.ckpt.places import add_path, checkpoint_at, folders_at
from taskloom.cli.ckpt.text import format_bytes, say
from taskloom.core.errors import CheckpointError

if TYPE_CHECKING:
    from taskloom.checkpoint.place import Place


def run(args: Sequence[str]) -> int:
    """Read everything, and return 1 if something is damaged."""
    parser = ArgumentParser(
        prog="task ckpt verify",
        description="Read every file of checkpoints, compare it with its hash, and check that tensors, indexes and "
        "state fit together. A run stands for all of its checkpoints.",
    )
    add_path(parser, several=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    results = [_verified(path) for text in options.path for path in _checkpoints(text)]
    if options.json:
        print(json.dumps(results, indent=1))
        return 0 if all(each["ok"] for each in results) else 1
    for each in results:
        say(each["path"])
        for file in each["files"]:
            say(f"  {'ok' if not file['problem'] else 'DAMAGED':<8}{format_bytes(file['bytes']):>9}  {file['name']}")
        for problem in each["problems"]:
            say(f"  {problem}")
    damaged = sum(not each["ok"] for each in results)
    what = f"{len(results)} checkpoint{'s' * (len(results) != 1)}"
    say(f"{what}: all good" if not damaged else f"{what}: {damaged} damaged")
    return 1 if damaged else 0


def _checkpoints(text: str) -> list[Place]:
    """Return one checkpoint, or all those of a run or of several."""
    from taskloom.checkpoint.catalogue import list_checkpoints
    from taskloom.checkpoint.manifest import MANIFEST
    from taskloom.checkpoint.place import as_path, is_file

    path = as_path(text)
    if text in ("last", "best") or is_file(path / MANIFEST):
        return [checkpoint_at(text)]
    try:
        return [each.path for folder in folders_at(text) for each in list_checkpoints(folder)]
    except CheckpointError:
        return [path]  # no checkpoint, or one without a manifest: what is wrong with it will be told


def _verified(path: Place) -> dict[str, Any]:
    from taskloom.checkpoint.file_checks import file_problem
    from taskloom.checkpoint.manifest import Manifest
    from taskloom.checkpoint.reader import CheckpointReader, problems_of

    files: list[dict[str, Any]] = []
    try:
        manifest = Manifest.read(path)
        for name, record in manifest.files.items():
            problem = file_problem(path / name, record, hashes=True)
            files.append({"name": name, "bytes": record.bytes, "problem": problem})
        problems = [file["problem"] for file in files if file["problem"]]
        if not problems:
            with CheckpointReader(path, manifest=manifest) as reader:
                reader.check()
    except CheckpointError as error:
        problems = problems_of(path, hashes=False) or [str(error)]
    return {"path": str(path), "ok": not problems, "files": files, "problems": problems}
