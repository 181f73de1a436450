"""What differs between two checkpoints: tensors, training state and configuration.

Tensors are compared one at a time and in blocks, so that two of them and a little more are in memory; whether they were
saved whole or in pieces makes no difference. Equal means the same bits: two NaN of the same bits are equal, zero and
minus zero are not. With a tolerance, numbers also count as equal if `|before - after| <= tolerance * (1 + |before|)`.
The time that a training took is not compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from taskloom.checkpoint.reader import CheckpointReader, open_checkpoint
from taskloom.checkpoint.tensor_file import TensorLayout
from taskloom.core.errors import explain

_BLOCK = 1 << 16  # elements that are compared at once
_MOST_VALUES = 20_000  # of a configuration; a few lines of YAML can stand for more than fits into memory
_CLOCK = "progress.seconds"  # differs between two trainings that are equal in all else
_MOST_NUMBERS = 8  # a longer row of numbers, such as the state of a generator, is one value


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that is not the same.

    Args:
        kind: the set it belongs to, such as `model`.
        name: of the tensor.
        before: its dtype and shape, `None` where it was added.
        after: the same, `None` where it was removed.
        elements: how many differ, of tensors of equal dtype and shape.
        largest_absolute: difference of any two elements; NaN if one of them is no number.
        largest_relative: the same relative to the larger of the two.
    """

    kind: str
    name: str
    before: str | None
    after: str | None
    elements: int | None = None
    largest_absolute: float | None = None
    largest_relative: float | None = None

    def __str__(self) -> str:
        where = f"{self.kind}: {self.name}"
        if self.before is None:
            return f"{where} was added, {self.after}"
        if self.after is None:
            return f"{where} was removed, {self.before}"
        if self.elements is None:
            return f"{where} was {self.before}, is {self.after}"
        return (
            f"{where} {self.before}: {_counted(self.elements)} by at most {self.largest_absolute:.3g}, "
            f"relatively {self.largest_relative:.3g}"
        )


@dataclass(frozen=True)
class ValueDifference:
    """One value that is not the same.

    Args:
        path: dotted, such as `progress.steps`.
        before: the value as text, `None` where it was added.
        after: the same, `None` where it was removed.
    """

    path: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.path} was added: {self.after}"
        if self.after is None:
            return f"{self.path} was removed: {self.before}"
        return f"{self.path}: {self.before} → {self.after}"


@dataclass(frozen=True)
class Difference:
    """What differs between two checkpoints.

    Args:
        tensors: in the order of the first checkpoint, those that were added last.
        state: of the training state, tied weights and metrics.
        config: of the configuration.
        compared: how many tensors were compared.
    """

    tensors: tuple[TensorDifference, ...]
    state: tuple[ValueDifference, ...]
    config: tuple[ValueDifference, ...]
    compared: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.tensors or self.state or self.config)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; a number that JSON lacks becomes text."""
        tensors = [
            {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in
             asdict(each).items()}
            for each in self.tensors
        ]  # fmt: skip
        values = {
            name: [asdict(each) for each in found] for name, found in (("state", self.state), ("config", self.config))
        }
        return {"equal": self.is_empty, "compared": self.compared, "tensors": tensors, **values}


def compare_checkpoints(a: str | PurePath, b: str | PurePath, *, tolerance: float = 0.0) -> Difference:
    """Compare two checkpoints.

    Args:
        a: the one before.
        b: the one after.
        tolerance: numbers that differ by no more than this, absolutely and relative to the first, count as equal.

    Raises:
        CheckpointError: one of them cannot be read.
        ValueError: the tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(explain("A tolerance is not negative", got=tolerance, fix="tolerance=1e-6"))
    with open_checkpoint(a) as before, open_checkpoint(b) as after:
        compared, tensors = _tensors(before, after, tolerance)
        return Difference(
            tensors=tuple(tensors),
            state=tuple(_values(_facts(before), _facts(after), tolerance)),
            config=tuple(_values(_config(before), _config(after), tolerance)),
            compared=compared,
        )


def _tensors(before: CheckpointReader, after: CheckpointReader, tolerance: float) -> tuple[int, list[TensorDifference]]:
    found: list[TensorDifference] = []
    compared = 0
    for kind in dict.fromkeys([*before.kinds, *after.kinds]):
        old, new = _layouts(before, kind), _layouts(after, kind)
        for name in dict.fromkeys([*old, *new]):
            one, other = old.get(name), new.get(name)
            if one is None or other is None or one != other:
                found.append(TensorDifference(kind, name, _named(one), _named(other)))
                continue
            compared += 1
            difference = _compare(before.tensor(kind, name), after.tensor(kind, name), tolerance)
            if difference is not None:
                found.append(TensorDifference(kind, name, str(one), str(other), *difference))
            before.close()  # lets go of the pages of this tensor
            after.close()
    return compared, found


def _named(layout: TensorLayout | None) -> str | None:
    return None if layout is None else str(layout)


def _layouts(reader: CheckpointReader, kind: str) -> dict[str, TensorLayout]:
    names = reader.names(kind) if kind in reader.kinds else []
    return {name: TensorLayout(*reader.dtype_and_shape(kind, name)) for name in names}


def _compare(one: Tensor, other: Tensor, tolerance: float) -> tuple[int, float, float] | None:
    """Return how many elements differ and by how much at most; `None` if they are equal."""
    one, other = one.contiguous().view(-1), other.contiguous().view(-1)
    elements, absolute, relative = 0, 0.0, 0.0
    for start in range(0, len(one), _BLOCK):
        a, b = one[start : start + _BLOCK], other[start : start + _BLOCK]
        bits, other_bits = a.view(torch.uint8), b.view(torch.uint8)
        if torch.equal(bits, other_bits):
            continue
        width = a.element_size()
        differs = (bits.view(-1, width) != other_bits.view(-1, width)).any(1)
        x, y = a.to(torch.float64)[differs], b.to(torch.float64)[differs]
        gap = (x - y).abs()
        gap[x == y] = 0.0 if a.is_floating_point() else 1.0  # of integers that float64 cannot tell apart
        if tolerance:
            beyond = ~(gap <= tolerance * (1 + x.abs())) & ~(x.isnan() & y.isnan())
            x, y, gap = x[beyond], y[beyond], gap[beyond]
        if not len(gap):
            continue
        elements += len(gap)
        ratio = torch.where(gap == 0, gap, gap / torch.maximum(x.abs(), y.abs()))
        absolute, relative = _larger(absolute, gap), _larger(relative, ratio)
    return (elements, absolute, relative) if elements else None


def _larger(known: float, values: Tensor) -> float:
    here = values.max().item()  # NaN if there is one
    return here if math.isnan(here) or here > known else known


def _facts(reader: CheckpointReader) -> dict[str, Any]:
    """Return everything about a checkpoint that is neither a tensor of a set nor configuration, by dotted path."""
    manifest = reader.manifest
    about = {
        "step": manifest.step,
        "epoch": manifest.epoch,
        "weights_only": manifest.weights_only,
        "metrics": {name: {"value": value, "step": step} for name, (value, step) in manifest.metrics.items()},
        "aliases": dict(manifest.aliases),
    }
    return {path: value for path, value in _flat({"manifest": about, **reader.state}) if path != _CLOCK}


def _config(reader: CheckpointReader) -> dict[str, Any]:
    """Return the values of the configuration by dotted path; its lines, if it is no plain YAML."""
    if reader.config is None:
        return {}
    import yaml  # imported here, because reading a checkpoint never needs it

    try:
        return dict(_flat(yaml.safe_load(reader.config), [_MOST_VALUES]))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return {f"line {number}": line for number, line in enumerate(reader.config.splitlines(), 1)}


def _flat(value: Any, left: list[int] | None = None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and value of everything in nested data.

    Raises:
        ValueError: there is more than `left` allows.
    """
    if left is not None:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("there are too many values")
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(each, left, _below(path, key))
    elif isinstance(value, (list, tuple)) and value and not _is_long_row(value):
        for number, each in enumerate(value):
            yield from _flat(each, left, f"{path}[{number}]")
    else:
        yield path, value


def _below(path: str, key: Any) -> str:
    if isinstance(key, str) and not set(key) & set(".[]"):
        return f"{path}.{key}" if path else key
    return f"{path}[{key!r}]"


def _is_long_row(value: Sequence[Any]) -> bool:
    return len(value) > _MOST_NUMBERS and all(isinstance(each, (int, float)) or each is None for each in value)


class _Missing:
    """Stands for a value that one side does not have; `None` is a value."""


_MISSING: Final = _Missing()


def _values(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> Iterator[ValueDifference]:
    for path in dict.fromkeys([*before, *after]):
        old, new = before.get(path, _MISSING), after.get(path, _MISSING)
        if old is _MISSING or new is _MISSING or not _equal(old, new, tolerance):
            yield ValueDifference(path, *_texts(old, new, tolerance))


def _equal(one: Any, other: Any, tolerance: float) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return TensorLayout.of(one) == TensorLayout.of(other) and _compare(one, other, tolerance) is None
    if isinstance(one, (np.ndarray, np.generic)):
        same: bool = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        return same
    if isinstance(one, float):
        within: bool = tolerance > 0 and abs(one - other) <= tolerance * (1 + abs(one))
        return within or one.hex() == other.hex()
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_equal(*pair, tolerance) for pair in zip(one, other, strict=True))
    return bool(one == other or repr(one) == repr(other))  # a complex NaN equals nothing


def _texts(old: Any, new: Any, tolerance: float) -> tuple[str | None, str | None]:
    """Return what to show of two values that differ: of many numbers, how many and the first."""
    if _is_row(old) and _is_row(new) and len(old) == len(new):
        differing = [number for number, pair in enumerate(zip(old, new, strict=True)) if not _equal(*pair, tolerance)]
        first = differing[0]
        return f"[{first}] {old[first]!r}", f"{new[first]!r}, and {len(differing) - 1} more of {len(old)} values"
    one, other = (None if each is _MISSING else _text(each) for each in (old, new))
    if one == other and isinstance(old, Tensor):
        elements, absolute, _ = _compare(old, new, tolerance) or (0, 0.0, 0.0)
        other = f"{_counted(elements)} by at most {absolute:.3g}"
    elif one == other and isinstance(old, np.ndarray):
        other = _counted(int(np.count_nonzero(old != new)))
    return one, other


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and _is_long_row(value)


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {TensorLayout.of(value)}" + (f" {value.item()!r}" if value.numel() == 1 else "")
    if isinstance(value, np.ndarray):
        return f"array {value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _counted(elements: int) -> str:
    return "1 element differs" if elements == 1 else f"{elements:,} elements differ"
