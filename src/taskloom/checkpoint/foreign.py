"""Weights of other frameworks, brought into our format: safetensors, and files that `torch.save` wrote.

A torch file is a pickle, and unpickling runs whatever the file says. It is read only by torch's restricted unpickler
(`torch.load(weights_only=True)`), which builds tensors and plain data; a file that needs more is refused, with the
names of what it asked for. There is no switch for less.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from taskloom.checkpoint.manifest import MANIFEST, Manifest, is_inside
from taskloom.checkpoint.place import Place, as_path, children, is_file, is_remote, kind_of, read_bytes
from taskloom.checkpoint.remote_file import RemoteTensorFile
from taskloom.checkpoint.shard import Shard, find_aliases
from taskloom.checkpoint.state import encode_state
from taskloom.checkpoint.writer import CheckpointContent, write_checkpoint
from taskloom.core.errors import CheckpointError, explain, nearest

_IN_FOLDERS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names that Transformers and Accelerate give to weights, the better first."""
_KEYS: Final = ("state_dict", "model_state_dict", "model", "module")
_NOT_ALLOWED = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True)
class ForeignWeights:
    """What a file of another framework holds, as far as it is taken over.

    Args:
        tensors: by name.
        aliases: names that share a tensor with another, which is among `tensors`.
        hyper_parameters: the arguments that a Lightning module was made with.
        step: optimizer steps done, where the file says so.
        epoch: epochs done.
        left_out: what was not taken over, each with the reason.
    """

    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    left_out: tuple[str, ...] = ()

    def renamed(self, strip_prefix: str, add_prefix: str) -> ForeignWeights:
        """Return them under other names.

        Raises:
            CheckpointError: no name begins with the prefix, or two become one.
        """
        names = [*self.tensors, *self.aliases]
        if strip_prefix and not any(name.startswith(strip_prefix) for name in names):
            first = {f"{name.partition('.')[0]}." for name in names}
            raise CheckpointError(
                explain(
                    f"No tensor's name begins with {strip_prefix!r}",
                    fix=f"names begin with {', '.join(sorted(first)[:8])}.{nearest(strip_prefix, first)}",
                )
            )
        new = {name: add_prefix + name.removeprefix(strip_prefix) for name in names}
        if len(set(new.values())) < len(new):
            raise CheckpointError(explain(f"Without {strip_prefix!r} two tensors have one name", fix="keep the prefix"))
        return ForeignWeights(
            {new[name]: tensor for name, tensor in self.tensors.items()},
            {new[alias]: new[name] for alias, name in self.aliases.items()},
            self.hyper_parameters, self.step, self.epoch, self.left_out,
        )  # fmt: skip


def import_weights(
    source: str | PurePath,
    out: str | PurePath,
    *,
    key: str | None = None,
    strip_prefix: str = "",
    add_prefix: str = "",
) -> tuple[Manifest, ForeignWeights]:
    """Write the weights of another framework as a checkpoint that holds weights only.

    `TaskModule.load_from_checkpoint` takes it, and so does a training that starts from its weights.

    Args:
        source: a `.safetensors` file, an index of several, a file of `torch.save` (Lightning's `.ckpt` included), or a
            folder of Transformers or Accelerate.
        out: a folder that is not there yet.
        key: where in a torch file the tensors are, such as `ema.state_dict`; found by itself where it has a usual name.
        strip_prefix: taken off the names that begin with it.
        add_prefix: put before every name afterwards, such as `net.` for a task that holds the model as `self.net`.

    Returns:
        The manifest, and what was read.

    Raises:
        CheckpointError: the file needs more than data, is damaged, holds no tensors, or `out` cannot be written.
    """
    target = as_path(out)
    if kind_of(target):
        raise CheckpointError(explain(f"{target} exists", fix="choose another place, or remove it"))
    weights = read_foreign(as_path(source), key).renamed(strip_prefix, add_prefix)
    content = CheckpointContent(
        model=[Shard.whole(name, tensor) for name, tensor in weights.tensors.items()],
        aliases=dict(weights.aliases),
        state={"hyper_parameters": dict(weights.hyper_parameters), "custom": {}},
        step=weights.step,
        epoch=weights.epoch,
    )
    return write_checkpoint(target, content, weights_only=True), weights


def read_foreign(source: Place, key: str | None = None) -> ForeignWeights:
    """Read weights of another framework; see `import_weights`.

    Raises:
        CheckpointError: they cannot be read.
    """
    path = _file_in(source) if kind_of(source) == "folder" else source
    if path.name.endswith(".json"):
        return _from_index(path, key)
    if path.name.endswith(".safetensors"):
        return _from_safetensors(path)
    return _from_torch(path, key)


def _file_in(folder: Place) -> Place:
    for name in _IN_FOLDERS:
        if is_file(folder / name):
            return folder / name
    names = [path.name for path, _ in children(folder)]
    if MANIFEST in names:
        raise CheckpointError(explain(f"{folder} is a checkpoint of taskloom already", fix="use it as it is"))
    if ".metadata" in names:
        raise CheckpointError(
            explain(
                f"{folder} is a distributed checkpoint of torch",
                why="its index is a pickle",
                fix=f"where you trust it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} "
                "weights.pt, and then import weights.pt",
            )
        )
    if "zero_to_fp32.py" in names:
        raise CheckpointError(
            explain(
                f"{folder} is a checkpoint of DeepSpeed",
                why="its pieces are pickles that need DeepSpeed's classes",
                fix="where you trust it: python zero_to_fp32.py . weights --safe_serialization in that folder, "
                "and then import weights",
            )
        )
    raise CheckpointError(
        explain(
            f"{folder} holds no weights by a known name", got=names[:8], fix=f"pass a file, or {_IN_FOLDERS[0]} in it"
        )
    )


def _from_index(path: Place, key: str | None) -> ForeignWeights:
    with _reading(path):
        weight_map = json.loads(read_bytes(path))["weight_map"]
        if not all(
            isinstance(file, str) and is_inside(file) and not file.endswith(".json") for file in weight_map.values()
        ):
            raise ValueError("it names something else than files of weights beside it")
        wanted: dict[str, list[str]] = {}
        for name, file in weight_map.items():
            wanted.setdefault(file, []).append(name)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for file, names in wanted.items():
        found = read_foreign(path.parent / file, key)
        missing = [name for name in names if name not in found.tensors and name not in found.aliases]
        if missing:
            raise CheckpointError(
                explain(f"{path.parent / file} does not hold {missing[0]!r}", fix="copy it again from its source")
            )
        tensors.update(found.tensors)
        aliases.update(found.aliases)
    return ForeignWeights(tensors, aliases)


def _from_safetensors(path: Place) -> ForeignWeights:
    with _reading(path):
        if is_remote(path):
            remote = RemoteTensorFile(path)
            return ForeignWeights({name: remote.get_tensor(name) for name in remote.keys()})  # noqa: SIM118
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            tied = file.metadata() or {}
    # safetensors' own save_model notes tied weights beside the format
    return ForeignWeights(
        tensors, {alias: name for alias, name in tied.items() if name in tensors and alias not in tensors}
    )


def _from_torch(path: Place, key: str | None) -> ForeignWeights:
    data = _load(path)
    found, where = _tensors_in(path, data, key)
    named = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    left_out = [
        f"{where}{name}, which is no tensor but {type(value).__name__}"
        for name, value in found.items()
        if not isinstance(value, Tensor)
    ]
    about = data if isinstance(data, Mapping) and found is not data else {}
    hyper_parameters = {}
    saved = about.get("hyper_parameters")
    for name, value in saved.items() if isinstance(saved, Mapping) else ():
        try:
            encode_state(value)
        except CheckpointError:
            left_out.append(f"hyper_parameters.{name}, which is no plain data but {type(value).__name__}")
        else:
            hyper_parameters[str(name)] = value
    aliases = find_aliases(named.items())
    return ForeignWeights(
        {name: tensor.detach() for name, tensor in named.items() if name not in aliases},
        aliases,
        hyper_parameters,
        step=_count(about.get("global_step")),
        epoch=_count(about.get("epoch")),
        left_out=tuple(left_out),
    )


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def _tensors_in(path: Place, data: Any, key: str | None) -> tuple[Mapping[str, Any], str]:
    """Return the mapping that holds the tensors, and where it is."""
    if key is not None:
        found: Any = data
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                known = [str(each) for each in found] if isinstance(found, Mapping) else []
                raise CheckpointError(
                    explain(
                        f"{path} has no {part!r} on the way to {key!r}",
                        got=known[:12],
                        fix=f"use one of these.{nearest(part, known)}",
                    )
                )
            found = found[part]
        if _holds_tensors(found):
            return found, f"{key}."
        raise CheckpointError(
            explain(f"{path} holds no tensors at {key!r}", got=type(found).__name__, fix="use another key")
        )
    for name in _KEYS:
        if isinstance(data, Mapping) and _holds_tensors(data.get(name)):
            return data[name], f"{name}."
    if _holds_tensors(data):
        return data, ""
    inside = [str(name) for name, value in data.items() if _holds_tensors(value)] if isinstance(data, Mapping) else []
    raise CheckpointError(
        explain(
            f"{path} holds no tensors where they usually are",
            got=list(data)[:12] if isinstance(data, Mapping) else type(data).__name__,
            fix=f"say where they are: --key {inside[0]}" if inside else "save model.state_dict() with torch.save",
        )
    )


def _holds_tensors(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(each, Tensor) for each in value.values())
    )


def _load(path: Place) -> Any:
    """Read a torch file with the restricted unpickler, memory-mapped where its format allows that."""
    with _reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of a file's format, which changes nothing
        if is_remote(path):
            with path.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
        mapped = zipfile.is_zipfile(path)  # what torch wrote before version 1.6 is none
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


@contextmanager
def _reading(path: Place) -> Iterator[None]:
    """Turn whatever a file of another framework does to its reader into an error that names it.

    Raises:
        CheckpointError: instead of any error.
    """
    if not kind_of(path):
        raise CheckpointError(explain(f"There is no file at {path}", fix="pass the path of an existing one"))
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # damaged files make pickle, zip and torch raise errors of every kind
        names = _not_allowed(path, error)
        if names:
            raise CheckpointError(
                explain(
                    f"{path} needs more than data: {', '.join(names)}",
                    why="reading these would run code of the file's choice, so it was not read",
                    fix="where you trust the file, take the weights out of it yourself: torch.save(torch.load(path, "
                    "weights_only=False)['state_dict'], 'weights.pt'), and import weights.pt",
                )
            ) from None
        raise CheckpointError(
            explain(
                f"{path} cannot be read",
                got=(str(error).strip().splitlines() or [type(error).__name__])[0],
                fix="pass a safetensors file or one that torch.save wrote, and copy it again if it is damaged",
            )
        ) from error


def _not_allowed(path: Place, error: Exception) -> list[str]:
    """Return the names that the restricted unpickler refused: all of them where the file can be scanned."""
    refused = set(_NOT_ALLOWED.findall(str(error)))
    if refused and isinstance(path, Path) and zipfile.is_zipfile(path):
        with suppress(Exception):  # reads opcodes and runs nothing; of a damaged file the first name must do
            refused.update(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return sorted(refused)
