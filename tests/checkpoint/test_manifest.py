from __future__ import annotations

import json
import math

import pytest

from taskloom.checkpoint import CheckpointError, FileRecord, Manifest
from taskloom.checkpoint.manifest import MANIFEST, VERSION, checksum, is_inside


def manifest() -> Manifest:
    return Manifest(
        run_id="r",
        save_id="s",
        saved_at="2026-11-20T00:00:00.000000+00:00",
        step=3,
        epoch=1,
        metrics={"val/loss": (0.5, 3), "diverged": (-math.inf, 2)},
        aliases={"b": "a"},
        files={"model/x.safetensors": FileRecord(8, "0123456789abcdef")},
    )


def write(folder, data, *, resign=True):
    if resign:
        data.pop("checksum", None)
        data["checksum"] = checksum(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def test_manifest_survives_its_json(tmp_path):
    write(tmp_path, manifest().to_json())
    assert Manifest.read(tmp_path) == manifest()


def test_every_field_is_covered_by_the_checksum(tmp_path):
    for name in manifest().to_json():
        data = manifest().to_json()
        data[name] = f"{data[name]}?"
        write(tmp_path, data, resign=False)
        with pytest.raises(CheckpointError, match=r"manifest\.json is not (what was written|the manifest)"):
            Manifest.read(tmp_path)


def test_newer_format_says_to_upgrade(tmp_path):
    write(tmp_path, {**manifest().to_json(), "version": VERSION + 1})
    with pytest.raises(
        CheckpointError, match=rf"is of format {VERSION + 1}.*Fix: upgrade with: pip install -U taskloom"
    ):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', "[" * 100_000, "\xff"])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"manifest\.json (cannot be read|is not the manifest)"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../x": {"bytes": 1, "xxh3_64": "0" * 16}}},
        {"files": {"x": {"bytes": "1", "xxh3_64": "0" * 16}}},
        {"files": {"x": {"bytes": 1, "xxh3_64": "no"}}},
        {"files": []},
        {"step": "3"},
        {"step": True},
        {"metrics": {"m": 1}},
        {"aliases": {"a": 1}},
        {"run_id": None},
        {"version": 1.0},
    ],
)
def test_field_of_another_type_is_refused_even_if_signed(tmp_path, change):
    write(tmp_path, {**manifest().to_json(), **change})
    with pytest.raises(CheckpointError, match=r"manifest\.json is not what was written"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("model/a.safetensors", True),
        ("a", True),
        ("/etc/passwd", False),
        ("../a", False),
        ("a/../../b", False),
        ("a\\..\\b", False),
        ("C:x", False),
        ("", False),
        ("a\0", False),
    ],
)
def test_file_names_stay_inside_the_checkpoint(name, inside):
    assert is_inside(name) is inside
