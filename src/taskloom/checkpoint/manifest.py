"""The manifest: what a checkpoint consists of, written last, so that a folder which has one is complete.

It lists every file with its size and hash, who wrote it and when, and the metrics with the step they were measured at.
Its own checksum covers all of its other fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar

import xxhash

from taskloom.checkpoint.place import Place, StoreError, read_bytes
from taskloom.checkpoint.upgrade import STEPS, upgraded_manifest
from taskloom.core.errors import CheckpointError, explain

MANIFEST = "manifest.json"
FORMAT = "taskloom-checkpoint"
VERSION = 1
ANOTHER_ONE = (
    "use another checkpoint (ckpt_path='last' walks back to the newest good one) or copy this one again from its source"
)
_HASH = re.compile(r"[0-9a-f]{16}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and xxh3-64 hash (16 hexadecimal digits) of one file."""

    bytes: int
    xxh3_64: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of.

    Args:
        run_id: the run that wrote it.
        save_id: the save that wrote it; policies that save one state at the same step recognise it by this.
        saved_at: UTC time in ISO format with microseconds, so that texts sort as times do.
        step: optimizer steps done.
        epoch: epochs done.
        weights_only: it holds neither optimizer nor training state and cannot be resumed from.
        metrics: name to (value, step it was measured at).
        aliases: tied weights, alias to stored name.
        files: path relative to the checkpoint (with `/`) to its record; the manifest itself is not among them.
        version: of the format.
        stored_version: of the format that the files on the disk have, where that is older; see `checkpoint/upgrade.py`.
    """

    run_id: str
    save_id: str
    saved_at: str
    step: int
    epoch: int
    weights_only: bool = False
    metrics: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    version: int = VERSION
    stored_version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, checksum included."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "version": self.version,
            "run_id": self.run_id,
            "save_id": self.save_id,
            "saved_at": self.saved_at,
            "step": self.step,
            "epoch": self.epoch,
            "weights_only": self.weights_only,
            "metrics": {
                name: {"value": value if math.isfinite(value) else str(value), "step": step}
                for name, (value, step) in self.metrics.items()
            },
            "aliases": dict(self.aliases),
            "files": {name: {"bytes": file.bytes, "xxh3_64": file.xxh3_64} for name, file in self.files.items()},
        }
        return {**data, "checksum": checksum(data)}

    @classmethod
    def read(cls, folder: Place) -> Manifest:
        """Read and check the manifest of a checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged, foreign, or of a newer format.
            StoreError: the store that it is in cannot be reached.
        """
        path = folder / MANIFEST
        try:
            data = json.loads(read_bytes(path))
        except StoreError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(explain(f"{path} cannot be read", got=str(error), fix=ANOTHER_ONE)) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CheckpointError(
                explain(
                    f"{path} is not the manifest of a taskloom checkpoint",
                    fix="pass the folder of a checkpoint that taskloom wrote",
                )
            )
        version = data.get("version")
        if isinstance(version, int) and version > VERSION:
            raise CheckpointError(
                explain(
                    f"{path} is of format {version}, and this taskloom reads formats up to {VERSION}",
                    fix="upgrade with: pip install -U taskloom",
                )
            )
        try:
            if data.pop("checksum", None) != checksum(data):
                raise ValueError("it was damaged or changed: its checksum does not match")
            stored = _typed(data, "version", int)
            if stored not in (VERSION, *STEPS):
                raise CheckpointError(
                    explain(
                        f"{path} is of format {stored}, which this taskloom cannot read",
                        fix="use the taskloom that wrote it, or another checkpoint",
                    )
                )
            return cls._parse(upgraded_manifest(data, stored, VERSION), stored)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                explain(f"{path} is not what was written", got=str(error), fix=ANOTHER_ONE)
            ) from error

    @classmethod
    def _parse(cls, data: Mapping[str, Any], stored_version: int) -> Manifest:
        metrics = {}
        for name, entry in _typed(data, "metrics", dict).items():
            value = entry["value"]
            metrics[name] = (float(value), _typed(entry, "step", int))
        files = {}
        for name, entry in _typed(data, "files", dict).items():
            if not is_inside(name) or not _HASH.fullmatch(_typed(entry, "xxh3_64", str)):
                raise ValueError(f"the file entry {name!r} is not allowed")
            files[name] = FileRecord(_typed(entry, "bytes", int), entry["xxh3_64"])
        aliases = _typed(data, "aliases", dict)
        if not all(isinstance(name, str) for name in aliases.values()):
            raise TypeError("aliases must name tensors")
        return cls(
            run_id=_typed(data, "run_id", str),
            save_id=_typed(data, "save_id", str),
            saved_at=_typed(data, "saved_at", str),
            step=_typed(data, "step", int),
            epoch=_typed(data, "epoch", int),
            weights_only=_typed(data, "weights_only", bool),
            metrics=metrics,
            aliases=aliases,
            files=files,
            version=_typed(data, "version", int),
            stored_version=stored_version,
        )


def _typed(data: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = data[name]
    if type(value) is not kind:
        raise TypeError(f"{name} is not of type {kind.__name__}")
    return value


def checksum(data: Mapping[str, Any]) -> str:
    """Return the xxh3-64 hash of JSON data, whatever its spacing and the order of its keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode())


def is_inside(name: str) -> bool:
    """Whether a stored file name stays inside its checkpoint, on every operating system."""
    parts = PurePosixPath(name).parts
    unsafe = not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name
    return not unsafe
