from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom import Progress

counters = st.builds(
    Progress,
    **{
        each.name: st.integers(0, 2**40) for each in fields(Progress) if each.name not in ("optimizer_steps", "seconds")
    },
    optimizer_steps=st.dictionaries(st.text(), st.integers(0)),
    seconds=st.floats(0, 1e9),
)


@given(counters)
def test_state_comes_back(progress):
    restored = Progress()
    restored.load_state_dict(progress.state_dict())
    assert restored == progress


def test_the_state_is_a_copy():
    progress = Progress(optimizer_steps={"SGD": 1})
    state = progress.state_dict()
    restored = Progress()
    restored.load_state_dict(state)
    progress.optimizer_steps["SGD"] = 2
    restored.optimizer_steps["SGD"] = 3
    assert state["optimizer_steps"] == {"SGD": 1}


@pytest.mark.parametrize("change", [lambda state: state.pop("steps"), lambda state: state.update(step=1)])
def test_a_state_of_something_else_is_refused(change):
    state = Progress().state_dict()
    change(state)
    with pytest.raises(ValueError, match=r"These are not the counters of a run. Got: \['steps?'\]"):
        Progress().load_state_dict(state)
