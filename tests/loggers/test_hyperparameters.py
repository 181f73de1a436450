"""Hyper-parameters as plain data without secrets."""

from __future__ import annotations

import datetime
import enum
import functools
import json
import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from taskloom.core.hparams import Hyperparameters
from taskloom.loggers import sanitize_hyperparameters
from taskloom.loggers.hyperparameters import REDACTED, flatten_hyperparameters


class Colour(enum.Enum):
    RED = 1


class Word(str, enum.Enum):
    HELLO = "hello"


@dataclass
class Options:
    width: int = 4
    api_key: str = "abc"


class Opaque:
    pass


@pytest.mark.holds("LG-15")
@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("text", "text"),
        (b"abc", "<3 bytes>"),
        ((1, [2]), [1, [2]]),
        ({3, 1, 2}, [1, 2, 3]),
        ({1: {"a": None}}, {"1": {"a": None}}),
        (Namespace(a=1), {"a": 1}),
        (Hyperparameters(a=1), {"a": 1}),
        (Options(), {"width": 4, "api_key": REDACTED}),
        (Options, "Options"),
        (Colour.RED, "RED"),
        (Word.HELLO, "HELLO"),
        (Path("a/b"), "a/b"),
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "cpu"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.timedelta(hours=1), "1:00:00"),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.zeros(8, 8), "Tensor(shape=(8, 8), dtype=float32)"),
        (torch.zeros(2, device="meta"), "Tensor(shape=(2,), dtype=float32)"),
        (np.float64(0.5), 0.5),
        (np.int32(7), 7),
        (np.array([1.5]), [1.5]),
        (np.zeros((9, 9)), "ndarray(shape=(9, 9), dtype=float64)"),
        (nn.ReLU(), "ReLU"),
        (nn.ReLU, "ReLU"),
        (functools.partial(torch.optim.AdamW, lr=0.1), "AdamW"),
        (math.sqrt, "sqrt"),
        (math, "math"),
        (nn.ReLU().forward, "ReLU.forward"),
        (Opaque(), "Opaque"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_values(value: Any, plain: Any) -> None:
    found = sanitize_hyperparameters({"value": value})["value"]
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.holds("LG-15")
@pytest.mark.parametrize(
    "key",
    ["password", "db_password", "PASSWORD", "api_key", "apiKey", "OPENAI_API_KEY", "secret", "client_secret", "token",
     "hf_token", "accessToken", "aws_secret_access_key", "credentials", "private_key"],
)  # fmt: skip
def test_secrets_are_redacted(key: str) -> None:
    assert sanitize_hyperparameters({"nested": {key: "s3cr3t"}})["nested"][key] == REDACTED
    assert sanitize_hyperparameters({key: ["s3cr3t"]})[key] == [REDACTED]


@pytest.mark.parametrize(
    "key", ["pad_token", "eos_token", "tokenizer", "num_tokens", "key", "keys", "monkey", "secretary"]
)
def test_ordinary_names_are_not(key: str) -> None:
    assert sanitize_hyperparameters({key: "text"})[key] == "text"


def test_a_number_is_no_secret() -> None:
    assert sanitize_hyperparameters({"token": 5}) == {"token": 5}


def test_logins_in_addresses_are_redacted() -> None:
    found = sanitize_hyperparameters({"store": "s3://user:s3cr3t@host/bucket?x=1", "plain": "https://host:80/a@b"})
    assert found == {"store": f"s3://{REDACTED}@host/bucket?x=1", "plain": "https://host:80/a@b"}


def test_what_contains_itself_ends() -> None:
    loop: dict[str, Any] = {"a": 1}
    loop["self"] = loop
    assert sanitize_hyperparameters({"loop": loop, "again": [1]}) == {
        "loop": {"a": 1, "self": "<recursive>"},
        "again": [1],
    }


data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.holds("LG-15")
@given(st.dictionaries(st.text(), data))
def test_the_result_is_json_and_sanitizing_again_changes_nothing(parameters: dict[str, Any]) -> None:
    once = sanitize_hyperparameters(parameters)
    assert sanitize_hyperparameters(json.loads(json.dumps(once))) == once


def test_flattening() -> None:
    nested = {"lr": 0.1, "net": {"widths": [1, 2], "act": None, "deep": {"on": True}}}
    assert flatten_hyperparameters(nested) == {
        "lr": 0.1,
        "net/widths": "[1, 2]",
        "net/act": "None",
        "net/deep/on": True,
    }
