"""Reading the `devices` that a user asked for."""

from __future__ import annotations

from collections.abc import Sequence

from taskloom.core.errors import explain

SPELLINGS = "write 2 (how many), '0,3' or [0, 3] (which), 'auto' or -1 (all)"


def parse_device_indices(devices: int | str | Sequence[int], count: int, kind: str) -> list[int]:
    """Return device indices, in the order asked for.

    Args:
        devices: how many (`2`, `"2"`), which (`"0,3"`, `[0, 3]`; `"3,"` for one), or all (`"auto"`, `-1`).
        count: how many there are.
        kind: of device, for the error texts.

    Raises:
        ValueError: the text cannot be read, there are fewer devices, or an index repeats.
    """
    wanted = _read(devices)
    if isinstance(wanted, list):
        return _checked_indices(wanted, count, kind)
    if wanted == -1:
        return list(range(count))
    if wanted < 1:
        raise ValueError(explain("devices must be at least 1", got=devices, fix=SPELLINGS))
    if wanted > count:
        raise ValueError(
            explain(
                f"{wanted} {kind} devices were asked for and there are {count}", got=devices, fix=f"devices={count}"
            )
        )
    return list(range(wanted))


def parse_process_count(devices: int | str | Sequence[int]) -> int:
    """Return how many processes `devices` means where devices have no numbers; all of them (`"auto"`, `-1`) is one.

    Raises:
        ValueError: the text cannot be read, or it picks devices by number.
    """
    wanted = _read(devices)
    if isinstance(wanted, list):
        raise ValueError(  # noqa: TRY004 - the type is fine for other devices
            explain(
                "A CPU cannot be picked by number",
                got=devices,
                fix=f"devices={len(wanted) or 1} for that many processes",
            )
        )
    if wanted == -1:
        return 1
    if wanted < 1:
        raise ValueError(explain("devices must be at least 1", got=devices, fix=SPELLINGS))
    return wanted


def _read(devices: int | str | Sequence[int]) -> int | list[int]:
    """Return how many devices are wanted (-1: all), or which."""
    if isinstance(devices, int) and not isinstance(devices, bool):
        return devices
    if isinstance(devices, str):
        text = devices.strip()
        if text == "auto":
            return -1
        try:
            if "," in text:
                return [int(part) for part in text.removesuffix(",").split(",")]
            return int(text)
        except ValueError:
            raise ValueError(explain("devices cannot be read", got=devices, fix=SPELLINGS)) from None
    if isinstance(devices, Sequence):
        indices = [index for index in devices if type(index) is int]
        if len(indices) == len(devices):
            return indices
    raise ValueError(explain("devices cannot be read", got=devices, fix=SPELLINGS))


def _checked_indices(indices: list[int], count: int, kind: str) -> list[int]:
    if not indices:
        raise ValueError(explain("No device was picked", got=indices, fix=SPELLINGS))
    if len(set(indices)) != len(indices):
        raise ValueError(explain("A device was picked twice", got=indices, fix="name each device once"))
    missing = [index for index in indices if not 0 <= index < count]
    if missing:
        known = f"they are numbered 0 to {count - 1}" if count else "there are none"
        raise ValueError(explain(f"There is no {kind} device {missing[0]}", got=indices, why=known, fix=SPELLINGS))
    return indices
