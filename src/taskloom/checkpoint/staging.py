"""How a checkpoint becomes visible: all at once, whatever kills the process.

On a disk, everything is staged in a hidden folder beside the target, on the same file system, with the manifest written
last; the folder is read back, and only then renamed to its final name.

An object store has no rename. There, a folder is a checkpoint if it has a manifest, and nothing else about it counts:

* A new checkpoint is uploaded under its final name, read back, and becomes visible with its manifest, one PUT, which is
  the last. While it is incomplete it holds a mark that names the run, so that the run can tidy up what it left.
* One that is replaced stays until the new one is whole under a hidden name. Then its manifest goes first, and until the
  new files and, last, the new manifest are in place, the hidden one is what a search finds.
* Deleting sets the mark and removes the manifest first, the other files next and the mark last.

What is listed is only ever a hint: listings of a store may lag behind, a manifest that can be read does not.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import xxhash

from taskloom.checkpoint.files import (
    copy_folder,
    make_folder,
    move_folder,
    move_into_place,
    put_bytes,
    remove_file,
    remove_tree,
    sync_folder,
    to_json,
    write_file,
)
from taskloom.checkpoint.manifest import MANIFEST, Manifest
from taskloom.checkpoint.place import Place, children, is_file, is_remote
from taskloom.core.errors import CheckpointError, explain

HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<purpose>writing|replaced|deleting)-(?P<run>[0-9a-f]{8})")
_MARK = re.compile(r"\.unfinished-[0-9a-f]{8}")

Verify = Callable[[Place, "Manifest | None"], list[str]]
"""Says what is wrong with a folder; one that has no manifest yet is given it."""


def hidden(target: Place, purpose: str, run_id: str) -> Place:
    """Return the hidden sibling of a checkpoint that a run uses for a purpose.

    Purposes are `writing`, `deleting`, and `replaced`: what stands for the target while that is replaced, on a disk the
    old checkpoint and in a store the new one.
    """
    return target.with_name(f".{target.name}.{purpose}-{_short(run_id)}")


def mark_name(run_id: str) -> str:
    """Return the name of the file that marks a folder in a store as being written or deleted by a run."""
    return f".unfinished-{_short(run_id)}"


def _short(run_id: str) -> str:
    return xxhash.xxh3_64_hexdigest(run_id.encode())[:8]


def stage(target: Place, run_id: str, *, fsync: bool) -> Staging:
    """Return where to write a checkpoint that shall appear at `target`.

    Args:
        target: its final place.
        run_id: of the run that writes.
        fsync: have a disk confirm everything.
    """
    return (
        StoreStaging(target, run_id, fsync=fsync) if is_remote(target) else FolderStaging(target, run_id, fsync=fsync)
    )


class Staging(ABC):
    """Where a checkpoint is written until it is whole. A context manager; leaving it by an error removes what is there.

    Attributes:
        folder: to write files below, once the context is entered.
    """

    def __init__(self, target: Place, run_id: str, *, fsync: bool) -> None:
        self.folder = target
        self._target, self._run_id, self._fsync = target, run_id, fsync

    @abstractmethod
    def begin(self) -> None:
        """Remove what an earlier attempt left, and make the folder."""

    @abstractmethod
    def publish(self, manifest: Manifest, verify: Verify) -> None:
        """Read back what was written, and let it appear at the target.

        Raises:
            CheckpointError: it does not verify; nothing has appeared.
        """

    def __enter__(self) -> Staging:
        try:
            self.begin()
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()

    @abstractmethod
    def _abandon(self) -> None:
        """Remove what was written, as far as that can be done."""

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise CheckpointError(
                explain(
                    f"{self._target} was not saved: what was written does not read back ({problems[0]})",
                    fix="check the disk; the earlier checkpoint is untouched",
                )
            )


class FolderStaging(Staging):
    """On a disk: a hidden folder that is renamed."""

    def __init__(self, target: Place, run_id: str, *, fsync: bool) -> None:
        super().__init__(target, run_id, fsync=fsync)
        self.folder = hidden(target, "writing", run_id)

    def begin(self) -> None:
        """Make the hidden folder."""
        remove_tree(self.folder)  # left by a run of this id that was killed
        make_folder(self.folder, exist_ok=False)

    def publish(self, manifest: Manifest, verify: Verify) -> None:
        """Write the manifest, verify, and rename."""
        write_file(self.folder / MANIFEST, to_json(manifest.to_json()), fsync=self._fsync)
        if self._fsync:
            sync_folder(self.folder)
        self._refuse(verify(self.folder, None))
        aside = hidden(self._target, "replaced", self._run_id)
        move_into_place(self.folder, self._target, aside, fsync=self._fsync)

    def _abandon(self) -> None:
        with suppress(OSError):
            remove_tree(self.folder)


class StoreStaging(Staging):
    """In a store: the final place itself, or a hidden one while an older checkpoint is there."""

    def __init__(self, target: Place, run_id: str, *, fsync: bool) -> None:
        super().__init__(target, run_id, fsync=fsync)
        self._mark = mark_name(run_id)
        self._waiting = hidden(target, "replaced", run_id)
        self._began = self._visible = False

    def begin(self) -> None:
        """Choose where to upload to, and mark it as unfinished."""
        if is_file(self._target / MANIFEST):
            self.folder = self._waiting
        self._began = True
        remove_tree(self.folder)
        put_bytes(self.folder / self._mark, b"{}\n")

    def publish(self, manifest: Manifest, verify: Verify) -> None:
        """Verify, then upload the manifest; replace what was there once the new one is whole."""
        self._refuse(verify(self.folder, manifest))
        self._visible = True  # from here on it may be what a search finds, so nothing of it is removed
        write_file(self.folder / MANIFEST, to_json(manifest.to_json()), fsync=False)
        remove_file(self.folder / self._mark)
        if self.folder == self._waiting:
            put_in_place(self._waiting, self._target, self._mark)
        else:
            remove_tree(self._waiting)  # stood for the target, if a process was killed while it was replaced

    def _abandon(self) -> None:
        if self._began and not self._visible:
            with suppress(OSError):
                _remove_marked(self.folder, self._mark)


def put_in_place(whole: Place, target: Place, mark: str) -> None:
    """Put a whole checkpoint of a store at its final place. What is there goes first, and `whole` itself last.

    Args:
        whole: the checkpoint, which a search finds as long as the target has no manifest.
        target: where it belongs.
        mark: name of the file that marks the target meanwhile.
    """
    put_bytes(target / mark, b"{}\n")
    remove_tree(target, keep=mark)
    copy_folder(whole, target)
    remove_file(target / mark)
    remove_tree(whole)


def _remove_marked(path: Place, mark: str) -> None:
    """Remove a folder of a store that has a mark, the mark last."""
    remove_tree(path, keep=mark)
    remove_tree(path)


def is_unfinished(path: Place) -> bool:
    """Whether a folder of a store is no checkpoint but what a save or a deletion that was killed has left."""
    if not is_remote(path) or is_file(path / MANIFEST):
        return False
    return any(_MARK.fullmatch(child.name) for child, _ in children(path))


def final_name(name: str) -> str:
    """Return the name of the checkpoint that a folder is, or that a hidden folder stands for."""
    match = HIDDEN.fullmatch(name)
    return match["name"] if match else name


def stands_for_its_target(path: Place) -> bool:
    """Whether a hidden folder, set aside or waiting to be put in place, is the only whole copy of a checkpoint."""
    match = HIDDEN.fullmatch(path.name)
    if match is None or match["purpose"] != "replaced":
        return False
    target = path.with_name(match["name"])
    if not is_remote(path):
        return not target.exists()
    return is_file(path / MANIFEST) and not is_file(target / MANIFEST)


def delete_checkpoint(path: Place, run_id: str) -> None:
    """Delete a checkpoint so that no crash on the way leaves anything that looks like one."""
    if is_remote(path):
        put_bytes(path / mark_name(run_id), b"{}\n")
        _remove_marked(path, mark_name(run_id))
        return
    doomed = hidden(path, "deleting", run_id)
    move_folder(path, doomed)
    remove_tree(doomed)


def tidy(folder: Place, run_id: str) -> None:
    """Remove what a killed process of a run left half written, half replaced or half deleted in a folder."""
    mark = mark_name(run_id)
    for path, is_folder in children(folder):
        match = HIDDEN.fullmatch(path.name)
        if not is_folder or (match and match["run"] != _short(run_id)):
            continue
        if match and stands_for_its_target(path):
            _restore(path, path.with_name(match["name"]), mark)
        elif match:
            remove_tree(path)
        elif is_remote(path) and is_file(path / mark):
            remove_file(path / mark) if is_file(path / MANIFEST) else _remove_marked(path, mark)


def _restore(path: Place, target: Place, mark: str) -> None:
    """Bring back the only copy of a checkpoint whose replacement was killed."""
    if is_remote(path):
        put_in_place(path, target, mark)
    else:
        move_folder(path, target)
