"""Weights for others: read by plain safetensors and by the convention of Transformers, streamed, whole or untouched."""

from __future__ import annotations

import errno
import json
import random
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.contents import make_content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from taskloom.checkpoint import CheckpointError, Shard, write_checkpoint
from taskloom.checkpoint.export import NamedTensors, export_weights, parse_size, write_weights
from taskloom.checkpoint.files import HashedFile


def transformers_reader(folder: Path) -> dict[str, Tensor]:
    """Load a folder as `from_pretrained` does, by the documented convention: the single file, else the index."""
    single = folder / "model.safetensors"
    if single.exists():
        files, names = [single], None
    else:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        names = index["weight_map"]
        assert isinstance(index["metadata"]["total_size"], int)
        files = [folder / name for name in sorted(set(names.values()))]
    loaded: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["format"] == "pt"  # Transformers refuses files that do not say so
            for key in opened.keys():  # noqa: SIM118
                assert names is None or names[key] == file.name
                loaded[key] = opened.get_tensor(key)
    assert names is None or set(names) == set(loaded)
    return loaded


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return set(found) == set(expected) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "net.embed.weight": torch.randn(50, 8, generator=generator),
        "net.scale": torch.tensor(2.5, dtype=torch.float64),
        "net.layers.0.weight": torch.randn(8, 8, generator=generator).bfloat16(),
        "net.layers.1.weight": torch.randn(8, 8, 3, generator=generator).half(),
        "net.count": torch.tensor([3], dtype=torch.int64),
        "net.empty": torch.empty(0, 4),
        "net.mask": torch.tensor([True, False]),
    }


def save(path: Path, weights: dict[str, Tensor], **fields: Any) -> Path:
    model = [Shard.whole(name, tensor) for name, tensor in weights.items()]
    write_checkpoint(path, make_content(**{"model": model, "optimizer": [], **fields}), fsync=False)
    return path


def pieces(name: str, tensor: Tensor, ranks: int, chance: random.Random) -> list[Shard]:
    """Cut a tensor as N ranks would: into uneven flat ranges, or into blocks of a random dimension."""
    if tensor.numel() < 2 or chance.random() < 0.2:
        return [Shard.whole(name, tensor)]
    if chance.random() < 0.5:
        cuts = sorted(chance.sample(range(1, tensor.numel()), min(ranks, tensor.numel()) - 1))
        bounds = [0, *cuts, tensor.numel()]
        flat = tensor.reshape(-1)
        return [Shard.flat_range(name, flat[a:b], tuple(tensor.shape), a) for a, b in pairwise(bounds)]
    dim = chance.randrange(tensor.dim())
    parts, start = [], 0
    for part in tensor.chunk(ranks, dim):
        offset = tuple(start if d == dim else 0 for d in range(tensor.dim()))
        parts.append(Shard(name, part.contiguous(), tuple(tensor.shape), offset))
        start += part.shape[dim]
    return parts


@pytest.mark.holds("CK-11")
def test_a_checkpoint_of_one_process_is_read_by_other_libraries_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "step-1", tensors())
    assert same(load_file(path / "model/model-00001-of-00001.safetensors"), tensors())
    assert same(transformers_reader(path / "model"), tensors())


@pytest.mark.holds("R43", "CK-11")
def test_one_file_holds_all_weights_with_their_dtypes(tmp_path: Path) -> None:
    path = save(tmp_path / "step-1", tensors())
    made = export_weights(path, tmp_path / "out/weights.safetensors")
    assert made.files == (tmp_path / "out/weights.safetensors",)
    assert made.index is None
    assert same(load_file(made.files[0]), tensors())
    assert names_in(tmp_path / "out") == ["weights.safetensors"]


@pytest.mark.holds("R43", "CK-11")
def test_a_folder_has_files_of_the_wanted_size_and_an_index(tmp_path: Path) -> None:
    path = save(tmp_path / "step-1", tensors())
    made = export_weights(path, tmp_path / "out", max_shard_size=400)
    assert [file.name for file in made.files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert made.total_size == sum(tensor.nbytes for tensor in tensors().values())
    assert json.loads(made.index.read_text())["metadata"]["total_size"] == made.total_size
    assert same(transformers_reader(tmp_path / "out"), tensors())
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in made.files]
    assert sizes[0] == 1600  # the first tensor alone is larger than wanted
    assert max(sizes[1:]) <= 400

    made = export_weights(path, tmp_path / "small")
    assert [file.name for file in made.files] == ["model.safetensors"]
    assert names_in(tmp_path / "small") == ["model.safetensors"]


@pytest.mark.holds("R43", "CK-14")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), ranks=st.integers(1, 5), largest=st.integers(100, 3000))
def test_what_several_processes_wrote_in_pieces_is_exported_whole(
    tmp_path_factory: pytest.TempPathFactory, seed: int, ranks: int, largest: int
) -> None:
    folder, chance = tmp_path_factory.mktemp("pieces"), random.Random(seed)
    weights = tensors(seed)
    shards = [shard for name, tensor in weights.items() for shard in pieces(name, tensor, ranks, chance)]
    chance.shuffle(shards)
    content = make_content(model=shards, optimizer=[])
    write_checkpoint(folder / "step-1", content, fsync=False, largest_file=chance.choice([64, 700, 10**9]))
    export_weights(folder / "step-1", folder / "out", max_shard_size=largest)
    assert same(transformers_reader(folder / "out"), weights)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.holds("CK-11")
def test_a_tied_weight_is_stored_once_and_tied_again_by_safetensors(tmp_path: Path) -> None:
    model = Tied()
    weights = {f"net.{name}": tensor for name, tensor in model.state_dict().items()}
    path = save(tmp_path / "step-1", weights, aliases={"net.head.weight": "net.embed.weight"})
    made = export_weights(path, tmp_path / "out", strip_prefix="net.")
    assert set(transformers_reader(tmp_path / "out")) == {"embed.weight"}
    assert made.aliases == {"head.weight": "embed.weight"}
    other = Tied()
    missing, unexpected = load_model(other, made.files[0])
    assert (missing, unexpected) == (set(), [])
    assert torch.equal(other.head.weight, model.head.weight)

    export_weights(path, tmp_path / "head.safetensors", include=["*head*"])
    assert same(load_file(tmp_path / "head.safetensors"), {"net.head.weight": model.head.weight.detach()})


def test_dtypes_are_converted_when_asked_and_only_of_floating_point(tmp_path: Path) -> None:
    path = save(tmp_path / "step-1", tensors())
    export_weights(path, tmp_path / "out.safetensors", dtype="bf16")
    expected = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors().items()}
    assert same(load_file(tmp_path / "out.safetensors"), expected)
    export_weights(path, tmp_path / "out.safetensors", dtype=torch.float32, overwrite=True)
    assert load_file(tmp_path / "out.safetensors")["net.scale"].dtype is torch.float32

    large = save(tmp_path / "step-2", {"w": torch.tensor([1.0, 1e6, float("inf")])})
    with pytest.raises(CheckpointError, match=r"'w' holds values that are too large for float16.*bf16"):
        export_weights(large, tmp_path / "half", dtype="fp16")
    assert not (tmp_path / "half").exists()
    infinite = save(tmp_path / "step-3", {"w": torch.tensor([float("inf")])})
    export_weights(infinite, tmp_path / "half", dtype="float16")
    with pytest.raises(ValueError, match=r"cannot be converted to this dtype.*int8"):
        export_weights(path, tmp_path / "out2", dtype="int8")


def test_names_are_chosen_and_shortened(tmp_path: Path) -> None:
    path = save(tmp_path / "step-1", {**tensors(), "loss.weight": torch.ones(2)})
    export_weights(path, tmp_path / "a.safetensors", include=["net.*"], exclude=["*.layers.*"], strip_prefix="net.")
    assert set(load_file(tmp_path / "a.safetensors")) == {"embed.weight", "scale", "count", "empty", "mask"}
    export_weights(path, tmp_path / "b.safetensors", exclude=["loss.*"], remove_task_prefix=True)
    assert "layers.0.weight" in load_file(tmp_path / "b.safetensors")
    for changes, text in (
        ({"include": ["nett.*"]}, r"No tensor matches 'nett\.\*'"),
        ({"include": ["net.*"], "exclude": ["net.*"]}, "leave no tensor"),
        ({"strip_prefix": "model."}, "No tensor's name begins with 'model.'.*loss., net."),
        ({"remove_task_prefix": True}, r"one attribute.*\['loss', 'net'\].*--strip_prefix"),
        ({"weights": "average"}, "no tensors of the kind 'average'.*model, optimizer"),
    ):
        with pytest.raises(CheckpointError, match=text):
            export_weights(path, tmp_path / "none", **changes)
    with pytest.raises(ValueError, match="exclude each other"):
        export_weights(path, tmp_path / "none", strip_prefix="net.", remove_task_prefix=True)
    with pytest.raises(ValueError, match="A single file has no shards"):
        export_weights(path, tmp_path / "none.safetensors", max_shard_size="1GB")
    assert not (tmp_path / "none").exists()
    clash = save(tmp_path / "step-2", {"net.w": torch.ones(1), "w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="Two tensors would be called 'w'"):
        export_weights(clash, tmp_path / "none", strip_prefix="net.")


@pytest.mark.holds("R45")
def test_averaged_weights_are_exported_by_switch_with_the_buffers_of_the_model(tmp_path: Path) -> None:
    average = {"net.embed.weight": torch.full((50, 8), 7.0)}
    further = {"average": [Shard.whole(name, tensor) for name, tensor in average.items()]}
    path = save(tmp_path / "step-1", tensors(), further=further)
    export_weights(path, tmp_path / "average.safetensors", weights="average")
    assert same(load_file(tmp_path / "average.safetensors"), {**tensors(), **average})
    export_weights(path, tmp_path / "model.safetensors")
    assert same(load_file(tmp_path / "model.safetensors"), tensors())


@pytest.mark.holds("R43")
def test_nothing_is_replaced_unless_asked(tmp_path: Path) -> None:
    first, second = save(tmp_path / "step-1", tensors(1)), save(tmp_path / "step-2", tensors(2))
    out = tmp_path / "out"
    export_weights(first, out, max_shard_size=400)
    (out / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds weights already: model-00001-of-00003.*--overwrite"):
        export_weights(second, out)
    assert same(transformers_reader(out), tensors(1))
    for size, count in ((400, 3), ("2KB", 2), (None, 1), (400, 3)):
        export_weights(second, out, max_shard_size=size, overwrite=True)
        assert same(transformers_reader(out), tensors(2))
        assert len(list(out.glob("*.safetensors"))) == count
        assert len(list(out.glob("*.index.json"))) == (count > 1)
        assert {path.name for path in out.iterdir() if "model" not in path.name} == {"config.json"}
    with pytest.raises(CheckpointError, match=r"is in the checkpoint .*step-1, which an export would damage"):
        export_weights(second, first / "model", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file is a file"):
        export_weights(second, tmp_path / "file", overwrite=True)


def test_a_kill_at_any_change_leaves_the_old_weights_or_the_new_ones(tmp_path: Path, killed_after: Any) -> None:
    first, second = save(tmp_path / "step-1", tensors(1)), save(tmp_path / "step-2", tensors(2))
    for old, new in ((None, "2KB"), ("2KB", None), (400, "2KB")):
        replace = partial(export_weights, second, max_shard_size=new, overwrite=True)
        export_weights(first, tmp_path / f"count-{old}", max_shard_size=old)
        changes = killed_after(None, partial(replace, tmp_path / f"count-{old}"))
        assert changes > 8
        for survives in range(changes):
            out = tmp_path / f"{old}-{survives}"
            export_weights(first, out, max_shard_size=old)
            killed_after(survives, partial(replace, out))
            found = transformers_reader(out)
            assert same(found, tensors(1)) or same(found, tensors(2)), (old, survives)
            replace(out)  # what was left is in nobody's way
            assert same(transformers_reader(out), tensors(2))
            assert not [name for name in names_in(out) if name.startswith(".")]


def test_a_kill_while_files_of_the_same_names_are_replaced_leaves_no_mixture(tmp_path: Path, killed_after: Any) -> None:
    first, second = save(tmp_path / "step-1", tensors(1)), save(tmp_path / "step-2", tensors(2))
    seen = set()
    for survives in range(40):
        out = tmp_path / f"{survives}"
        export_weights(first, out, max_shard_size=400)
        killed_after(survives, partial(export_weights, second, out, max_shard_size=400, overwrite=True))
        if not (out / "model.safetensors.index.json").exists():
            seen.add("none")
            continue
        found = transformers_reader(out)
        assert same(found, tensors(1)) or same(found, tensors(2))
        seen.add("old" if same(found, tensors(1)) else "new")
    assert seen == {"old", "none", "new"}


@pytest.mark.holds("R43")
def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path) -> None:
    path = save(tmp_path / "step-1", tensors())
    file = path / "model/model-00001-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00001\.safetensors was damaged or changed"):
        export_weights(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.holds("R43")
def test_what_does_not_read_back_is_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "step-1", tensors())
    original = HashedFile.write

    def flipped(self: HashedFile, data: bytes | memoryview) -> None:
        original(self, data)
        if len(data) == 1600:
            self._file.seek(-1, 1)
            self._file.write(b"!")

    monkeypatch.setattr(HashedFile, "write", flipped)
    with pytest.raises(CheckpointError, match="does not read back as it was written"):
        export_weights(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = save(tmp_path / "step-1", tensors(1)), save(tmp_path / "step-2", tensors(2))
    export_weights(first, tmp_path / "out")

    def full(self: HashedFile, data: bytes | memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(HashedFile, "write", full)
        with pytest.raises(CheckpointError, match=r"could not be written.*untouched.*No space left.*free space"):
            export_weights(second, tmp_path / "out", overwrite=True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"total": 10**6, "free": 100})())
    with pytest.raises(CheckpointError, match=r"bytes are needed and 100 are free.*free space"):
        export_weights(second, tmp_path / "out", overwrite=True)
    assert same(transformers_reader(tmp_path / "out"), tensors(1))
    assert names_in(tmp_path / "out") == ["model.safetensors"]


def test_a_folder_that_cannot_be_written_is_named(unwritable: Path) -> None:
    weights = NamedTensors.of_shards([Shard.whole("w", torch.ones(2))], {})
    with pytest.raises(CheckpointError, match=r"read-only.*Permission denied.*choose another place"):
        write_weights(weights, unwritable / "out")


MEASURE = """
import resource, sys, torch
from taskloom.checkpoint.export import export_weights
torch.set_num_threads(1)
small, *large = sys.argv[1:]
export_weights(small, "warm", dtype="bf16")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in large:
    export_weights(path, path + "-out", max_shard_size="60MB")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.holds("R43")
def test_memory_holds_a_tensor_and_not_a_file(tmp_path: Path) -> None:
    """10 tensors of 12 MB from one file, whole and in pieces, into files of 60 MB."""
    size = 3_000_000
    values = torch.arange(size, dtype=torch.float32)
    shape, cut = (3, size // 3), size // 3 + 1
    whole = [Shard.whole(f"w{number}", values) for number in range(10)]
    pieces = [
        Shard.flat_range(f"w{number}", part, shape, start)
        for number in range(10)
        for start, part in ((0, values[:cut]), (cut, values[cut:]))
    ]
    for name, shards in (("whole", whole), ("pieces", pieces)):
        write_checkpoint(tmp_path / name, make_content(model=shards, optimizer=[]), fsync=False)
    save(tmp_path / "small", tensors())
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "small", "whole", "pieces"], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout) * 1024
    assert peak < 60_000_000, f"{peak:,} bytes"  # 33 MB that stay mapped, and the tensor in hand with its pieces


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("5GiB", 5 * 2**30), ("200MB", 2 * 10**8), ("1.5 kb", 1500), ("12", 12), (7, 7)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5XB", "-1GB", "GB", "0", 0, -3, True, "5 GB 3"])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(ValueError, match="A size is a number of bytes"):
        parse_size(text)
