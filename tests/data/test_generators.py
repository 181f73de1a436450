from __future__ import annotations

import json
import random
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from data.resuming import saved, seed
from torch import distributed

from taskloom import Fabric
from taskloom.data.generators import Generators, own_generators, own_states, restore_own_states, synchronize


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.holds("CK-09", "R13")
def test_states_pass_through_a_checkpoint() -> None:
    generators = Generators()
    states = saved(generators.states())
    expected = [draws() for _ in range(3)]
    generators.restore(states)
    assert [draws() for _ in range(3)] == expected
    np.random.standard_normal()  # keeps a second number for the next call
    states = saved(generators.states())
    expected = np.random.standard_normal()
    generators.restore(states)
    assert np.random.standard_normal() == expected


@pytest.mark.holds("CK-09")
def test_some_generators_are_restored_and_others_go_on() -> None:
    generators = Generators()
    states = generators.states(["python", "torch"])
    first = draws()
    generators.restore(states)
    second = draws()
    assert (second[0], second[2]) == (first[0], first[2])
    assert second[1] != first[1]


@pytest.mark.holds("R13")
def test_states_of_own_generators_pass_through_a_checkpoint() -> None:
    class Owner:
        def __init__(self) -> None:
            self.parts: list[Any] = [
                random.Random(1), np.random.default_rng(1), np.random.RandomState(1), torch.Generator().manual_seed(1),
                np.random.Generator(np.random.SFC64(1)),
            ]  # fmt: skip

        def draw(self) -> tuple[float, ...]:
            one, two, three, four, five = self.parts
            return one.random(), two.random(), three.rand(), torch.rand((), generator=four).item(), five.random()

    owner, other = Owner(), Owner()
    owner.draw()
    states = saved(own_states(own_generators({"owner": owner})))
    restore_own_states(own_generators({"owner": other}), states)
    assert owner.draw() == other.draw()


@pytest.mark.holds("UT-03")
def test_one_process_is_in_step_with_itself() -> None:
    fabric = Fabric(accelerator="cpu")
    own = torch.Generator().manual_seed(2)
    before = Generators().states(), own.get_state()
    fabric.synchronize_generators(["torch", "python", "numpy"], own)
    after = Generators().states(), own.get_state()
    assert json.dumps(before, default=repr) == json.dumps(after, default=repr)


@pytest.mark.holds("UT-03")
def test_a_generator_that_is_unknown_is_named() -> None:
    with pytest.raises(ValueError, match=r"There is no generator 'nunpy'\. Did you mean 'numpy'\?"):
        Fabric(accelerator="cpu").synchronize_generators(["python", "nunpy"])


def _rank(rank: int, store: str, results: Any) -> None:
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    seed(rank)
    own = torch.Generator().manual_seed(rank)

    def broadcast(value: Any) -> Any:
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    synchronize(Generators(), ["torch", "numpy"], [own], broadcast)
    results.put((rank, draws(), torch.rand((), generator=own).item()))
    distributed.destroy_process_group()


@pytest.mark.holds("UT-03")
def test_two_processes_share_the_chosen_generators(tmp_path: Any) -> None:
    context = torch.multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(rank, str(tmp_path / "store"), results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    (_, one, own_one), (_, two, own_two) = sorted(results.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert one[1:] == two[1:]
    assert one[0] != two[0]
    assert own_one == own_two
