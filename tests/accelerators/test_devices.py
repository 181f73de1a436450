"""`devices` as people write it."""

from __future__ import annotations

import pytest

from taskloom.accelerators.devices import parse_device_indices, parse_process_count


@pytest.mark.holds("AC-10")
@pytest.mark.parametrize(
    ("devices", "indices"),
    [
        (1, [0]),
        (3, [0, 1, 2]),
        ("2", [0, 1]),
        (" 2 ", [0, 1]),
        ("0,3", [0, 3]),
        ("3, 1", [3, 1]),
        ("3,", [3]),
        ([0, 3], [0, 3]),
        ((2,), [2]),
        ([3, 0], [3, 0]),
        ("auto", [0, 1, 2, 3]),
        (-1, [0, 1, 2, 3]),
        ("-1", [0, 1, 2, 3]),
    ],
)
def test_devices_are_counted_or_picked(devices, indices):
    assert parse_device_indices(devices, 4, "CUDA") == indices


@pytest.mark.holds("AC-10")
@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (5, r"5 CUDA devices were asked for and there are 4\. Got: 5\. Fix: devices=4"),
        (0, r"devices must be at least 1\. Got: 0"),
        (-2, r"devices must be at least 1\. Got: -2"),
        ("two", r"devices cannot be read\. Got: 'two'\. Fix: write 2 \(how many\)"),
        ("0;1", r"devices cannot be read\. Got: '0;1'"),
        ("", r"devices cannot be read\. Got: ''"),
        (True, r"devices cannot be read\. Got: True"),
        (1.5, r"devices cannot be read\. Got: 1\.5"),
        ([0, "1"], r"devices cannot be read"),
        ([0, True], r"devices cannot be read"),
        ([], r"No device was picked"),
        ([0, 0], r"A device was picked twice\. Got: \[0, 0\]"),
        ("1,4", r"There is no CUDA device 4\. Got: \[1, 4\]\. Why: they are numbered 0 to 3"),
        ([-1], r"There is no CUDA device -1"),
    ],
)
def test_what_cannot_be_meant_is_refused(devices, message):
    with pytest.raises(ValueError, match=message):
        parse_device_indices(devices, 4, "CUDA")


def test_picking_where_there_is_none():
    with pytest.raises(ValueError, match=r"There is no CUDA device 0.*Why: there are none"):
        parse_device_indices([0], 0, "CUDA")


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (4, 4), ("3", 3), ("auto", 1), (-1, 1)])
def test_processes_are_counted(devices, count):
    assert parse_process_count(devices) == count


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([0, 1], r"A CPU cannot be picked by number\. Got: \[0, 1\]\. Fix: devices=2"),
        ("0,1", r"A CPU cannot be picked by number"),
        (0, r"devices must be at least 1"),
        ("x", r"devices cannot be read"),
    ],
)
def test_processes_cannot_be_picked(devices, message):
    with pytest.raises(ValueError, match=message):
        parse_process_count(devices)
