"""Training state as typed JSON: everything that is data comes back as it was, and nothing else is let in.

What JSON has stays as it is; any other type becomes an object with one key that begins with `$` and names the type,
such as `{"$tuple": [1, 2]}`. Tensors and arrays go, as raw bytes, into a safetensors file beside the JSON. The set of
types is closed: decoding looks tags up in a table and never resolves a name to a class, so reading a state cannot run
code. What is not data (functions, modules, open files, objects of other classes) is refused when it is saved, by the
name of the field that holds it.

Containers that share one object, or a tensor and a view of it, come back as separate copies. Tensors come back on the
CPU.
"""

from __future__ import annotations

import base64
import enum
import io
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from taskloom.checkpoint.tensor_file import DTYPES, raw_bytes, storable_problem
from taskloom.core.errors import CheckpointError, explain

_SMALLEST_INT, _LARGEST_INT = -(2**63), 2**63 - 1  # what every JSON reader can hold
_DEEPEST = 100  # far below the interpreter's recursion limit, so that what can be saved can be read from any call depth
_TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = {
    str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)
}
_NUMPY_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    name: np.dtype(name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64", "complex64", "complex128",
    )
}  # fmt: skip


@dataclass(frozen=True)
class EncodedState:
    """JSON data, and the tensors it refers to by key."""

    data: Any
    tensors: dict[str, Tensor]

    def only(self, names: Collection[str]) -> EncodedState:
        """Return some entries of an encoded dict, with the tensors that they refer to."""
        data = {name: value for name, value in self.data.items() if name in names}
        wanted = set(_tensor_keys(data))
        return EncodedState(data, {key: tensor for key, tensor in self.tensors.items() if key in wanted})


def encode_state(obj: object, where: str = "state") -> EncodedState:
    """Encode nested data.

    Args:
        obj: `None`, bool, int, float, str, bytes, complex, list, tuple, dict (with any keys that are data), set,
            frozenset, deque, `OrderedDict`, `Counter`, range, `Path`, date and time types,
            `torch.Size`/`dtype`/`device`, tensors, NumPy scalars and arrays, nested in any way. Subclasses are other
            types and are refused.
        where: what `obj` is, as the first part of the names in errors.

    Raises:
        CheckpointError: something is not data; names every such field and what to save instead.
    """
    encoder = _Encoder()
    data = encoder.encode(obj, where)
    if len(encoder.problems) > 1:
        listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(encoder.problems, 1))
        raise CheckpointError(f"{len(encoder.problems)} values cannot be saved:\n{listed}")
    if encoder.problems:
        raise CheckpointError(encoder.problems[0])
    return EncodedState(data, encoder.tensors)


def decode_state(data: Any, tensors: Mapping[str, Tensor], where: str = "state") -> Any:
    """Decode what `encode_state` made.

    Args:
        data: the JSON data.
        tensors: the tensors it refers to.
        where: what is being read, for errors.

    Raises:
        CheckpointError: the data is damaged, or holds a type that this version does not know.
    """
    try:
        return _decode(data, tensors)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(
            explain(
                f"{where} cannot be decoded",
                got=f"{type(error).__name__}: {error}",
                fix="use another checkpoint, or a newer taskloom",
            )
        ) from error


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.problems: list[str] = []
        self._open: set[int] = set()  # containers being encoded, to notice one that holds itself

    def encode(self, obj: Any, path: str) -> Any:
        kind = type(obj)
        if obj is None or kind in (bool, str):
            return obj
        if kind is int:
            return obj if _SMALLEST_INT <= obj <= _LARGEST_INT else {"$int": hex(obj)}
        if kind is float:
            return obj if math.isfinite(obj) else {"$float": str(obj)}
        if kind in _CONTAINERS:
            return self._container(obj, path)
        if kind in _LEAVES:
            return self._leaf(obj, path)
        if kind is Tensor:
            return self._tensor(obj, path)
        if kind is np.ndarray or isinstance(obj, np.generic):
            return self._numpy(obj, path)
        return self._refuse(obj, path)

    def _container(self, obj: Any, path: str) -> Any:
        if id(obj) in self._open:
            self.problems.append(
                explain(f"{path} contains itself", fix="save the inner reference as a name or an index")
            )
            return None
        if len(self._open) == _DEEPEST:
            self.problems.append(explain(f"{path} is nested more than {_DEEPEST} levels deep", fix="flatten it"))
            return None
        self._open.add(id(obj))
        try:
            kind = type(obj)
            if kind is dict and all(type(key) is str and not key.startswith("$") for key in obj):
                return {key: self.encode(value, f"{path}.{key}") for key, value in obj.items()}
            if kind in (dict, OrderedDict, Counter):
                return {_CONTAINERS[kind]: self._pairs(obj, path)}
            items = [self.encode(item, f"{path}[{position}]") for position, item in enumerate(obj)]
            if kind is list:
                return items
            if kind is deque:
                return {"$deque": {"items": items, "maxlen": obj.maxlen}}
            return {_CONTAINERS[kind]: sorted(items, key=repr) if kind in (set, frozenset) else items}
        finally:
            self._open.discard(id(obj))

    def _pairs(self, obj: Mapping[Any, Any], path: str) -> list[Any]:
        return [
            [self.encode(key, f"{path}, key {key!r}"), self.encode(value, f"{path}[{key!r}]")]
            for key, value in obj.items()
        ]

    def _leaf(self, obj: Any, path: str) -> Any:
        if isinstance(obj, (datetime, time)) and obj.tzinfo is not None and type(obj.tzinfo) is not timezone:
            self.problems.append(
                explain(
                    f"{path} has a named time zone, of which only the offset could be saved",
                    fix="save value.astimezone(timezone.utc)",
                )
            )
            return None
        tag, encode = _LEAVES[type(obj)]
        return {tag: encode(obj)}

    def _tensor(self, tensor: Tensor, path: str) -> Any:
        problem = storable_problem(tensor)
        if problem:
            self.problems.append(explain(f"{path} is a tensor that cannot be saved", why=problem))
            return None
        if tensor.dtype in DTYPES:
            return {"$tensor": {"key": self._keep(tensor, path)}}
        return {
            "$tensor": self._raw(
                _from_bytes(raw_bytes(tensor)), path, str(tensor.dtype).removeprefix("torch."), tensor.shape
            )
        }

    def _numpy(self, value: Any, path: str) -> Any:
        name = value.dtype.name
        if name not in _NUMPY_DTYPES:
            self.problems.append(
                explain(
                    f"{path} has the NumPy dtype {value.dtype}, which is not plain numbers",
                    fix="save value.tolist(), or value.astype(...)",
                )
            )
            return None
        little = value.astype(_NUMPY_DTYPES[name].newbyteorder("<"))
        if isinstance(value, np.generic):
            return {"$scalar": {"dtype": name, "hex": little.tobytes().hex()}}
        return {"$array": self._raw(_from_bytes(little.tobytes()), path, name, value.shape)}

    def _raw(self, data: Tensor, path: str, dtype: str, shape: Iterable[int]) -> dict[str, Any]:
        return {"key": self._keep(data, path), "dtype": dtype, "shape": list(shape)}

    def _keep(self, tensor: Tensor, path: str) -> str:
        base = path.encode(errors="replace").decode()  # safetensors takes Unicode without lone surrogates
        key, copies = base, 1
        while key in self.tensors:  # a key with a dot in it can spell the same path as a nested one
            copies += 1
            key = f"{base}#{copies}"
        self.tensors[key] = tensor
        return key

    def _refuse(self, obj: object, path: str) -> None:
        kind = type(obj)
        self.problems.append(
            explain(
                f"{path} is not data, so it cannot be saved",
                got=f"{kind.__module__}.{kind.__qualname__}",
                why="a checkpoint holds only data, so that loading one can never run code",
                fix=_remedy(obj, path.rpartition(".")[2]),
            )
        )


def _tensor_keys(data: Any) -> Iterator[str]:
    """Yield the keys of the tensors that encoded data refers to."""
    if isinstance(data, list):
        for item in data:
            yield from _tensor_keys(item)
    elif isinstance(data, dict):
        for tag, value in data.items():
            if tag in ("$tensor", "$array"):
                yield value["key"]
            else:
                yield from _tensor_keys(value)


def _remedy(obj: object, field: str) -> str:
    leave_out = f"leave it out: save_hyperparameters(ignore=[{field!r}])"
    if isinstance(obj, torch.nn.Module):
        return f"save its state_dict(), or {leave_out}"
    if isinstance(obj, Tensor):
        return (
            "save tensor.detach() of an ordinary tensor; model and optimizer tensors are saved as shards of their own"
        )
    if isinstance(obj, io.IOBase):
        return f"save its path, or {leave_out}"
    if isinstance(obj, enum.Enum):
        return "save its .value"
    if is_dataclass(obj) and not isinstance(obj, type):
        return "save dataclasses.asdict(value)"
    for plain in (dict, list, tuple, set, str, int, float, bytes):
        if isinstance(obj, plain):
            return f"its own type would be lost; save {plain.__name__}(value)"
    if isinstance(obj, torch.Generator):
        return "save its get_state()"
    if isinstance(obj, type) or callable(obj):
        return f"save its name, or the arguments that make it, or {leave_out}"
    return f"turn it into numbers, text, lists, dicts or tensors, or {leave_out}"


def _from_bytes(data: bytes | memoryview) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if len(data) else torch.empty(0, dtype=torch.uint8)


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _array(data: bytearray, dtype: str) -> np.ndarray[Any, Any]:
    native = _NUMPY_DTYPES[dtype]
    return np.frombuffer(data, native.newbyteorder("<")).astype(native, copy=False)


_CONTAINERS: Final[Mapping[type, str]] = {
    list: "",
    dict: "$dict",
    tuple: "$tuple",
    set: "$set",
    frozenset: "$frozenset",
    OrderedDict: "$ordered",
    Counter: "$counter",
    deque: "$deque",
}
_LEAVES: Final[Mapping[type, tuple[str, Callable[[Any], Any]]]] = {
    bytes: ("$bytes", _base64),
    bytearray: ("$bytearray", _base64),
    complex: ("$complex", lambda value: [str(value.real), str(value.imag)]),
    range: ("$range", lambda value: [value.start, value.stop, value.step]),
    torch.Size: ("$size", list),
    torch.dtype: ("$dtype", lambda value: str(value).removeprefix("torch.")),
    torch.device: ("$device", str),
    type(Path()): ("$path", str),
    datetime: ("$datetime", datetime.isoformat),
    date: ("$date", date.isoformat),
    time: ("$time", time.isoformat),
    timedelta: ("$timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
}
_LEAF_DECODERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$int": lambda text: int(text, 16),
    "$float": float,
    "$bytes": _unbase64,
    "$bytearray": lambda text: bytearray(_unbase64(text)),
    "$complex": lambda parts: complex(float(parts[0]), float(parts[1])),
    "$range": lambda parts: range(*parts),
    "$size": torch.Size,
    "$dtype": lambda name: _TORCH_DTYPES[name],
    "$device": torch.device,
    "$path": Path,
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$timedelta": lambda parts: timedelta(*parts),
    "$scalar": lambda entry: _array(bytearray.fromhex(entry["hex"]), entry["dtype"])[0],
}
_CONTAINER_DECODERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$dict": dict,
    "$ordered": OrderedDict,
    "$counter": lambda pairs: Counter(dict(pairs)),
}


def _decode(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(data, list):
        return [_decode(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    tag = next(iter(data), "")
    if not tag.startswith("$"):
        return {key: _decode(value, tensors) for key, value in data.items()}
    (payload,) = data.values()
    if tag in _LEAF_DECODERS:
        return _LEAF_DECODERS[tag](payload)
    if tag in _CONTAINER_DECODERS:
        return _CONTAINER_DECODERS[tag]([_decode(item, tensors) for item in payload])
    if tag == "$deque":
        return deque((_decode(item, tensors) for item in payload["items"]), maxlen=payload["maxlen"])
    if tag == "$tensor":
        stored = tensors[payload["key"]]
        if "dtype" not in payload:
            return stored
        return (
            stored.clone().view(_TORCH_DTYPES[payload["dtype"]]).reshape(payload["shape"])
        )  # a clone is aligned for any dtype
    if tag == "$array":
        return _array(bytearray(raw_bytes(tensors[payload["key"]])), payload["dtype"]).reshape(payload["shape"])
    raise ValueError(f"the type {tag!r} is unknown")
