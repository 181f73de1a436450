"""Three-way merges keep what both sides did, or show that they disagree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom.cli.three_way import merge_texts

LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "d\n", "e\n"]), max_size=12).map("".join)


@pytest.mark.holds("CL-11")
@given(base=LINES, changed=LINES)
def test_one_side_changed(base: str, changed: str) -> None:
    assert merge_texts(base, changed, base).text == changed
    assert merge_texts(base, base, changed).text == changed
    assert merge_texts(base, changed, changed).text == changed
    assert merge_texts(base, changed, base).conflicts == 0


@given(base=LINES, ours=LINES, theirs=LINES)
def test_no_line_of_ours_is_lost_without_a_mark(base: str, ours: str, theirs: str) -> None:
    merged = merge_texts(base, ours, theirs)
    added = set(ours.splitlines()) - set(base.splitlines())
    assert added <= set(merged.text.splitlines())
    assert merged.text.count("<<<<<<< yours") == merged.conflicts


def test_changes_in_different_places_are_both_kept() -> None:
    base = "".join(f"line {number}\n" for number in range(9))
    ours = base.replace("line 1\n", "line 1, mine\n")
    theirs = base.replace("line 7\n", "line 7, new\nline 7b\n")
    merged = merge_texts(base, ours, theirs)
    assert merged.conflicts == 0
    assert merged.text == ours.replace("line 7\n", "line 7, new\nline 7b\n")


def test_changes_in_the_same_place_are_both_shown() -> None:
    merged = merge_texts("a\nb\nc", "a\nmine\nc", "a\ntheirs\nc")
    assert merged.conflicts == 1
    assert merged.text == "a\n<<<<<<< yours\nmine\n=======\ntheirs\n>>>>>>> template\nc"
