"""Whatever is saved, pinned, damaged, deleted and resumed, in whatever order: nothing that somebody needs is deleted.

A machine of random operations on a folder that several policies of a run, another run and people use at once, checked
against what should be left by a model that knows nothing of how keepers work.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from checkpoint.contents import make_content
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from taskloom.checkpoint import (
    CheckpointKeeper,
    CheckpointPolicy,
    Manifest,
    open_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from taskloom.checkpoint import (
    keeper as keeper_module,
)
from taskloom.checkpoint.files import remove_tree, write_file
from taskloom.checkpoint.folder import best_entries, read_json
from taskloom.checkpoint.place import as_path, children, is_file, kind_of, read_bytes
from taskloom.core.errors import CheckpointError, TaskloomWarning

OURS, THEIRS = "run-a", "run-b"
METRIC = st.sampled_from([math.nan, math.inf, 0.0, 0.5, 0.5, 1.0, -1.0])
POLICIES = st.sampled_from(
    [
        {"keep_last": 1},
        {"keep_last": 2},
        {"monitor": "m", "save_top_k": 2, "keep_last": 0},
        {"monitor": "m", "save_top_k": 1, "keep_last": 1},
        {"monitor": "m", "mode": "max", "save_top_k": 2, "keep_last": 1},
    ]
)


class Kept:
    """What one policy should keep, by its words alone."""

    def __init__(self, policy: CheckpointPolicy) -> None:
        self.policy = policy
        self.saved: list[tuple[str, float | None]] = []

    def wanted(self, saved: list[tuple[str, float | None]] | None = None) -> set[str]:
        saved = self.saved if saved is None else saved
        newest = [name for name, _ in saved][-self.policy.keep_last :] if self.policy.keep_last else []
        valued = [(value, number, name) for number, (name, value) in enumerate(saved) if value is not None]
        if self.policy.mode == "max":
            valued = [(-value, number, name) for value, number, name in valued]
        best = [name for _, _, name in sorted(valued)][: self.policy.save_top_k] if self.policy.monitor else []
        return {*newest, *best}

    def save(self, name: str, value: float) -> None:
        measured = value if self.policy.monitor and math.isfinite(value) else None
        saved = [*(each for each in self.saved if each[0] != name), (name, measured)]
        if name in self.wanted(saved):
            self.saved = saved


class Retention(RuleBasedStateMachine):
    """See the module's text. `place` says where the folder is."""

    place = ""
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        Retention.runs += 1
        self.folder = as_path(f"{self.place}/{Retention.runs}")
        self.step = 0
        self.pinned: dict[str, str] = {}  # to the save they were pinned at
        self.resumed_from: str | None = None
        self.gone: set[str] = set()  # what people took away or damaged
        self.went_back = False
        self.bytes_of_others: dict[Any, bytes] = {}

    # Operations -------------------------------------------------------------------------------------------------------

    @initialize(policies=st.lists(POLICIES, min_size=1, max_size=3), shared=st.booleans())
    def start(self, policies: list[dict[str, Any]], shared: bool) -> None:
        if shared:
            self._share_the_folder()
        self.policies = [CheckpointPolicy(fsync=False, **policy) for policy in policies]
        self._make_keepers()
        self.models = [Kept(policy) for policy in self.policies]

    def _make_keepers(self) -> None:
        self.keepers = [
            CheckpointKeeper(self.folder, policy, OURS, name=str(number) if number else "")
            for number, policy in enumerate(self.policies)
        ]

    @rule(values=st.lists(METRIC, min_size=1, max_size=3), apart=st.integers(1, 2))
    def save_all(self, values: list[float], apart: int) -> None:
        for value in values:
            self._save(value, set(), apart)

    @rule(value=METRIC, due=st.sets(st.integers(0, 2), max_size=2), apart=st.integers(1, 2))
    def save(self, value: float, due: set[int], apart: int) -> None:
        self._save(value, due, apart)

    def _save(self, value: float, due: set[int], apart: int) -> None:
        self.step += apart
        name = f"step-{self.step:08d}"
        state = {"keepers": [keeper.state_dict() for keeper in self.keepers]}
        state["models"] = [[list(each) for each in model.saved] for model in self.models]
        content = make_content(self.step, OURS, metrics={"m": (value, self.step)}, state=state)
        with self._deleting_safely(content.save_id):
            for number, (keeper, model) in enumerate(zip(self.keepers, self.models, strict=True)):
                if number in due or not due:
                    model.save(name, value)
                    path = keeper.save(content)
                    assert (path is not None) == (name in model.wanted())
                    if path is not None:
                        self.gone.discard(name)
                        assert Manifest.read(path).save_id == content.save_id

    @contextmanager
    def _deleting_safely(self, save_id: str) -> Iterator[None]:
        """Check at every deletion that the successor is there, verifies, and is what `last.json` names."""
        delete = keeper_module.delete_checkpoint

        def checked(path: Any, run_id: str) -> None:
            newest = self.folder / read_json(self.folder / "last.json")["checkpoint"]
            assert Manifest.read(newest).save_id == save_id
            assert not verify_checkpoint(newest)
            assert Manifest.read(path).run_id == OURS
            assert path.name not in {*self.pinned, self.resumed_from, newest.name}
            delete(path, run_id)

        keeper_module.delete_checkpoint = checked
        try:
            yield
        finally:
            keeper_module.delete_checkpoint = delete

    @precondition(lambda self: self.ours())
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.ours())))
        self.keepers[0].pin(self.folder / name)
        self.pinned[name] = Manifest.read(self.folder / name).save_id

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.pinned)))
        self.keepers[0].pin(self.folder / name, pinned=False)
        del self.pinned[name]

    @precondition(lambda self: self.ours())
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        """A new process goes on from any checkpoint, mostly the last."""
        names = sorted(self.ours())
        name = data.draw(st.sampled_from([*names, *[names[-1]] * 3]))
        path = self.folder / name
        with open_checkpoint(path, verify=True) as reader:
            state, step, value = reader.state, reader.manifest.step, reader.manifest.metrics["m"][0]
        self._make_keepers()
        lost = []
        saved = zip(state["keepers"], state["models"], strict=True)
        for model, keeper, (kept, known) in zip(self.models, self.keepers, saved, strict=True):
            model.saved = [(name, value) for name, value in known if name != path.name]
            ranked = value if model.policy.monitor and math.isfinite(value) else None
            model.saved.append((name, ranked))
            wanted = model.wanted()
            missing = {each for each, _ in model.saved if not kind_of(self.folder / each)}
            model.saved = [each for each in model.saved if each[0] not in missing]
            lost.append(bool(missing & wanted))
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                keeper.load_state_dict(kept, resumed_from=path)
            assert any("was kept and is gone" in str(each.message) for each in told) == lost[-1]
        self.went_back = self.went_back or step < self.step
        self.resumed_from, self.step = name, step

    @precondition(lambda self: self.ours())
    @rule(data=st.data(), how=st.sampled_from(["delete", "truncate", "manifest"]))
    def meddle(self, data: st.DataObject, how: str) -> None:
        """Somebody deletes or damages a checkpoint."""
        path = self.folder / data.draw(st.sampled_from(sorted(self.ours())))
        if how == "delete":
            remove_tree(path)
        else:
            victim = path / ("manifest.json" if how == "manifest" else "model/model-00001-of-00001.safetensors")
            half = read_bytes(victim)[:40]
            remove_tree(victim) if kind_of(victim) == "folder" else victim.unlink()
            write_file(victim, half, fsync=False)
        self.gone.add(path.name)
        self.pinned.pop(path.name, None)

    def _share_the_folder(self) -> None:
        """Another run saves here, and somebody keeps a folder that is called like a checkpoint."""
        write_checkpoint(self.folder / "step-00001000", make_content(1000, THEIRS), fsync=False)
        notes = self.folder / "step-backup" / "notes"
        notes.mkdir(parents=True)
        write_file(notes / "a.txt", b"mine", fsync=False)
        for path in (self.folder / "step-00001000" / "manifest.json", notes / "a.txt"):
            self.bytes_of_others[path] = read_bytes(path)

    # What must hold ---------------------------------------------------------------------------------------------------

    def ours(self) -> set[str]:
        """Names of the good checkpoints of this run."""
        if not kind_of(self.folder):
            return set()
        names = {path.name for path, _ in children(self.folder) if re.fullmatch(r"step-\d{8}", path.name)}
        return {
            name
            for name in names - self.gone
            if is_file(self.folder / name / "manifest.json") and Manifest.read(self.folder / name).run_id == OURS
        }

    @invariant()
    def what_others_keep_is_untouched(self) -> None:
        assert {path: read_bytes(path) for path in self.bytes_of_others} == self.bytes_of_others

    @invariant()
    def what_is_needed_is_there_and_good(self) -> None:
        needed = {name for model in getattr(self, "models", ()) for name in model.wanted()} - self.gone
        if self.resumed_from is not None:
            needed |= {self.resumed_from} - self.gone
        there = self.ours()
        assert needed <= there, needed - there
        for name in needed:
            assert not verify_checkpoint(self.folder / name)

    @invariant()
    def what_is_pinned_is_there_as_it_was(self) -> None:
        found = set()
        for path, _ in children(self.folder) if self.pinned else ():
            if is_file(path / "manifest.json"):
                with suppress(CheckpointError):
                    found.add(Manifest.read(path).save_id)
        assert set(self.pinned.values()) <= found

    @invariant()
    def pointers_name_what_is_there(self) -> None:
        last = read_json(self.folder / "last.json").get("checkpoint") if kind_of(self.folder) else None
        if last is not None and last not in self.gone:
            assert last in self.ours()
        for model in getattr(self, "models", ()):
            valued = [each for each in model.saved if each[1] is not None]
            entry = best_entries(self.folder).get(f"m ({model.policy.mode})") if valued else None
            if entry is not None and entry["checkpoint"] not in self.gone:
                assert entry["checkpoint"] in self.ours()

    @invariant()
    def keepers_know_what_they_keep(self) -> None:
        for keeper, model in zip(getattr(self, "keepers", ()), getattr(self, "models", ()), strict=True):
            assert {path.name for path in keeper.kept} == model.wanted()

    def teardown(self) -> None:
        """After a few more saves that every policy keeps, nothing old is there that nobody needs."""
        if self.gone or self.went_back or not hasattr(self, "models"):
            return
        before = self.step
        for value in (-2.0, 2.0, -3.0, 3.0, -4.0, 4.0):
            self._save(value, set(), 1)
        needed = {name for model in self.models for name in model.wanted()} | {*self.pinned, self.resumed_from}
        pointed = {entry["checkpoint"] for entry in best_entries(self.folder).values()}
        extra = {name for name in self.ours() - needed - pointed if int(name.removeprefix("step-")) <= before}
        assert not extra


def run(place: str, examples: int) -> None:
    class Machine(Retention):
        pass

    Machine.place = place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TaskloomWarning)
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None)
        )


@pytest.mark.holds("R12", "CK-04")
def test_no_order_of_events_deletes_what_is_needed(tmp_path: Any) -> None:
    run(str(tmp_path), 25)


@pytest.mark.holds("R12")
def test_no_order_of_events_deletes_what_is_needed_in_a_store() -> None:
    try:
        run("memory://retention", 8)
    finally:
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
