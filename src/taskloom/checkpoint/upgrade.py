"""From older versions of the format to the present one.

Every version has one step to the next: pure functions on parsed JSON, of the manifest and of the other JSON files. The
reader applies them in memory, so that an older checkpoint is read like a new one; `task ckpt upgrade` writes the result
(`checkpoint/rewrite.py`). Tensors are safetensors in every version and stay as they are.

A new version is made by raising `VERSION` in manifest.py and adding its step here; steps are never removed, because a
checkpoint outlives the software that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class UpgradeStep:
    """What makes a checkpoint of one version one of the next.

    Args:
        summary: what changed, for people.
        manifest: takes the fields of the old manifest, without its checksum, and returns those of the new one. `files`
            goes on to describe what is there.
        file: takes the path of a JSON file relative to the checkpoint, and its content, and returns the new content.
    """

    summary: str
    manifest: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields
    file: Callable[[str, Any], Any] = lambda name, content: content


STEPS: Final[dict[int, UpgradeStep]] = {}
"""The step from each version to the one after it."""


def steps_between(old: int, new: int) -> list[UpgradeStep]:
    """Return the steps from one version to another.

    Raises:
        LookupError: there is no way from there.
    """
    if old > new or any(version not in STEPS for version in range(old, new)):
        raise LookupError(f"there is no step from version {old} of the format")
    return [STEPS[version] for version in range(old, new)]


def upgraded_manifest(fields: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    """Return the fields of a manifest as the version `new` has them.

    Raises:
        LookupError: there is no way from there, or a field is missing.
    """
    for step in steps_between(old, new):
        fields = step.manifest(fields)
    return {**fields, "version": new}


def upgraded_file(name: str, content: Any, old: int, new: int) -> Any:
    """Return the content of a JSON file as the version `new` has it; see `UpgradeStep.file`."""
    for step in steps_between(old, new):
        content = step.file(name, content)
    return content
