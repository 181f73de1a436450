"""The public names, held by a snapshot: what users may call changes only on purpose."""

from __future__ import annotations

import difflib

import public_api
import pytest

import taskloom


@pytest.mark.holds("R57")
def test_the_public_names_and_signatures_are_those_of_the_snapshot() -> None:
    committed = public_api.SNAPSHOT.read_text(encoding="utf-8")
    difference = difflib.unified_diff(
        committed.splitlines(), public_api.render().splitlines(), "tests/public_api.txt", "the package", lineterm=""
    )
    changed = "\n".join(difference)
    assert not changed, f"The public interface has changed. If that is meant, run `make api` and commit it.\n{changed}"


@pytest.mark.holds("R57")
def test_every_public_name_loads_and_is_listed() -> None:
    assert len(set(taskloom.__all__)) == len(taskloom.__all__)
    for name in taskloom.__all__:
        assert getattr(taskloom, name) is not None
    assert set(taskloom.__all__) <= set(dir(taskloom))
    with pytest.raises(AttributeError, match="has no attribute 'Trainr'"):
        taskloom.Trainr  # noqa: B018 - reading it is the test


MISSING = object()


def test_the_snapshot_shows_what_a_caller_sees() -> None:
    class Example:
        def __init__(self, size: int, *, default: object = MISSING) -> None: ...

        def method(self, value: float = 0.5) -> None: ...

        @property
        def fact(self) -> int:
            return 1

        @classmethod
        def build(cls, path: str) -> Example: ...  # type: ignore[empty-body]

        def _internal(self) -> None: ...

    assert list(public_api.describe("Example", Example)) == [
        "class Example (size: 'int', *, default: 'object' = <object>) -> 'None'",
        "  build(cls, path: 'str') -> 'Example': classmethod",
        "  fact: property",
        "  method(value: 'float' = 0.5) -> 'None'",
    ]
