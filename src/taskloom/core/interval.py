"""How often something happens, and when it is due.

The idea of a duration as a typed value is Composer's (`composer/core/time.py`); the accepted spellings are those that
users of Lightning (ints, floats, `DD:HH:MM:SS`) and of the Transformers Trainer (parts of a run) write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Literal, Union, get_args

from taskloom.core.errors import explain

Unit = Literal["epochs", "steps", "batches", "seconds", "run"]
IntervalLike = Union[str, int, float, timedelta, "Interval"]

_UNITS: Mapping[str, tuple[Unit, float]] = {
    "epoch": ("epochs", 1),
    "step": ("steps", 1),
    "batch": ("batches", 1),
    "batche": ("batches", 1),
    "second": ("seconds", 1),
    "sec": ("seconds", 1),
    "s": ("seconds", 1),
    "minute": ("seconds", 60),
    "min": ("seconds", 60),
    "hour": ("seconds", 3600),
    "h": ("seconds", 3600),
    "day": ("seconds", 86400),
}
_SPELLINGS = (
    "write '1 epoch', '500 steps', '200 batches', '10 minutes', '10%' (of the run), "
    "'00:01:00:00' (days to seconds), an int (batches) or a float up to 1.0 (part of an epoch)"
)
_AMOUNT = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]+|%)\s*$")
_CLOCK = re.compile(r"^\d+(:\d{1,2}){2,3}$")


def parse_seconds(value: str | timedelta | Mapping[str, float] | float) -> float:
    """Return the seconds in `'DD:HH:MM:SS'`, `'10 minutes'`, a `timedelta`, its keyword arguments, or a number."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return timedelta(**value).total_seconds()
    if isinstance(value, str):
        interval = Interval.parse(value)
        if interval.unit != "seconds":
            raise ValueError(
                explain(
                    "A duration in time was expected", got=value, fix="write '10 minutes', '2 hours' or '00:01:30:00'"
                )
            )
        return interval.amount
    return float(value)


@dataclass(frozen=True)
class Interval:
    """An amount of epochs, optimizer steps, training batches (micro-batches), seconds, or a part of the whole run.

    Args:
        amount: how many, greater than zero. For `run`, a part between 0 and 1.
        unit: of what.
    """

    amount: float
    unit: Unit

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(
                explain("An interval has no such unit", got=self.unit, fix=f"use one of {', '.join(get_args(Unit))}")
            )
        whole = self.unit in ("steps", "batches")
        if (
            not math.isfinite(self.amount)
            or self.amount <= 0
            or (whole and self.amount != int(self.amount))
            or (self.unit == "run" and self.amount > 1)
        ):
            raise ValueError(
                explain(
                    f"An interval of {self.unit} must be a positive {'whole ' if whole else ''}amount",
                    got=self.amount,
                    fix=_SPELLINGS,
                )
            )

    @classmethod
    def parse(cls, value: IntervalLike) -> Interval:
        """Read any of the accepted spellings.

        Raises:
            ValueError: the text is none of them, or the amount is not positive.
            TypeError: the value is of another type.
        """
        if isinstance(value, Interval):
            return value
        if isinstance(value, timedelta):
            return cls(value.total_seconds(), "seconds")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise TypeError(explain("An interval cannot be read from this type", got=value, fix=_SPELLINGS))
        if isinstance(value, int):
            return cls(value, "batches")
        if isinstance(value, float):
            if not 0 < value <= 1:
                raise ValueError(
                    explain(
                        "A float interval is a part of an epoch, above 0 and at most 1.0", got=value, fix=_SPELLINGS
                    )
                )
            return cls(value, "epochs")
        return cls._from_text(value)

    @classmethod
    def _from_text(cls, text: str) -> Interval:
        if _CLOCK.match(text.strip()):
            parts = [int(part) for part in text.strip().split(":")]
            days, hours, minutes, seconds = [0] * (4 - len(parts)) + parts
            return cls(timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds(), "seconds")
        match = _AMOUNT.match(text)
        if match is None:
            raise ValueError(explain("This text is not an interval", got=text, fix=_SPELLINGS))
        amount, word = float(match[1]), match[2].lower()
        if word == "%":
            return cls(float(Decimal(match[1]) / 100), "run")
        unit = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
        if unit is None:
            raise ValueError(explain(f"An interval has no unit {match[2]!r}", got=text, fix=_SPELLINGS))
        return cls(amount * unit[1], unit[0])

    def __str__(self) -> str:
        # In decimal, and never with an exponent, so that the text is read back as the same number.
        amount = Decimal(repr(float(self.amount)))
        if self.unit == "run":
            return f"{_written(amount * 100)}%"
        word = (
            self.unit
            if self.amount != 1
            else {"epochs": "epoch", "steps": "step", "batches": "batch", "seconds": "second"}[self.unit]
        )
        return f"{_written(amount)} {word}"


def _written(amount: Decimal) -> str:
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
