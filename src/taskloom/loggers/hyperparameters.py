"""Hyper-parameters as plain data that is safe to show: what every logger can take, and no secrets."""

from __future__ import annotations

import enum
import functools
import inspect
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

REDACTED: Final = "<redacted>"
_MOST_ELEMENTS = 16  # of a tensor that is shown in full
_SECRET_WORDS = frozenset(
    {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "apikey"}
)
_SECRET_ENDINGS = (("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"))
# "pad_token" and "eos_token" are texts of a tokenizer; a token is secret by itself or after one of these.
_TOKEN_OWNERS = frozenset(
    {"auth", "access", "api", "bearer", "refresh", "session", "hf", "hub", "huggingface", "wandb"}
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LOGIN = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")


def sanitize_hyperparameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested plain data: None, bool, int, float, str, lists and dicts with text keys.

    * Classes, functions and modules become their names, `functools.partial` the name of what it calls.
    * Tensors and arrays of up to 16 elements become lists (0-dim ones a number), larger ones their shape and dtype.
    * Paths, dtypes, devices and times become text, enums their name, data classes and namespaces dicts, sets sorted
    lists. * Texts under a key that looks like a secret (`password`, `api_key`, `hf_token`, ...) and logins in addresses
    are redacted. * Any other object becomes the name of its type: its `repr` could be anything, also an address in
    memory.

    Args:
        parameters: anything `save_hyperparameters` accepts.
    """
    return {str(name): _plain(value, str(name), ()) for name, value in parameters.items()}


def flatten_hyperparameters(parameters: Mapping[str, Any], separator: str = "/") -> dict[str, bool | int | float | str]:
    """Return sanitized hyper-parameters with one level: `{"net/width": 4}`; lists and None become text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            flat.update(
                {f"{name}{separator}{inner}": each for inner, each in flatten_hyperparameters(value, separator).items()}
            )
        else:
            flat[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def write_hyperparameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Write sanitized hyper-parameters as YAML, replacing the file in one step."""
    import yaml

    beside = path.with_name(f".{path.name}.new")
    beside.write_text(yaml.safe_dump(dict(parameters), sort_keys=False, allow_unicode=True), encoding="utf-8")
    beside.replace(path)


def _is_secret(key: str) -> bool:
    words = [word.lower() for word in _WORD.findall(key)]
    if not words:
        return False
    if _SECRET_WORDS.intersection(words) or tuple(words[-2:]) in _SECRET_ENDINGS:
        return True
    return words[-1] == "token" and (len(words) == 1 or words[-2] in _TOKEN_OWNERS)


def _plain(value: Any, key: str, above: tuple[int, ...]) -> Any:
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, enum.Enum):  # before str and int, which an enum may be as well
        return value.name
    if isinstance(value, (str, bytes)):
        return _text(value, key)
    if id(value) in above:
        return "<recursive>"
    return _container(value, key, (*above, id(value))) if _is_container(value) else _leaf(value)


def _text(value: str | bytes, key: str) -> str:
    if _is_secret(key):
        return REDACTED
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return _LOGIN.sub(REDACTED, str(value))


def _is_container(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray, nn.Module, type)):
        return False
    return isinstance(value, (Mapping, Namespace, Sequence, Set)) or is_dataclass(value)


def _container(value: Any, key: str, above: tuple[int, ...]) -> Any:
    if isinstance(value, Namespace):
        value = vars(value)
    elif is_dataclass(value):
        value = {each.name: vars(value).get(each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(each, str(name), above) for name, each in value.items()}
    items = [_plain(each, key, above) for each in value]
    return sorted(items, key=repr) if isinstance(value, Set) else items


def _leaf(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        return _array(value)
    if isinstance(value, (np.number, np.bool_)):
        return _plain(value.item(), "", ())
    if isinstance(value, (int, float)):  # a subclass
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, (Path, torch.dtype, torch.device, timedelta)):
        return str(value)
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, functools.partial):
        return _leaf(value.func)
    return _name(value)


def _array(value: Tensor | np.ndarray[Any, Any]) -> Any:
    size = value.numel() if isinstance(value, Tensor) else value.size
    meta = isinstance(value, Tensor) and value.is_meta
    if size > _MOST_ELEMENTS or meta:
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{type(value).__name__}(shape={tuple(value.shape)}, dtype={dtype})"
    plain = value.detach().cpu().tolist() if isinstance(value, Tensor) else value.tolist()
    return str(plain) if isinstance(plain, complex) else plain


def _name(value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    named = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    return str(named.__qualname__)
