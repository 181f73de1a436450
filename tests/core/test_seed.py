from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from taskloom import seed_everything


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.holds("UT-01")
def test_a_seed_fixes_every_generator():
    assert seed_everything(7) == 7
    first = draws()
    seed_everything(7)
    assert draws() == first
    seed_everything(8)
    assert all(one != other for one, other in zip(draws(), first, strict=True))


@pytest.mark.holds("UT-01")
def test_device_specific_seeds_differ_by_rank_and_others_do_not():
    drawn = {}
    for device_specific in (False, True):
        for rank in (0, 1):
            assert seed_everything(2**32 - 1, device_specific=device_specific, rank=rank) == 2**32 - 1
            drawn[device_specific, rank] = draws()
    assert drawn[False, 0] == drawn[False, 1] == drawn[True, 0] != drawn[True, 1]


def test_without_a_seed_one_is_drawn_and_returned():
    seed = seed_everything()
    first = draws()
    assert seed_everything(seed) == seed
    assert draws() == first


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"A seed lies between 0 and {2**32 - 1}. Got: {seed}. Why: NumPy"):
        seed_everything(seed)


class Noise(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor(draws(), dtype=torch.float64)


@pytest.mark.holds("UT-01")
@pytest.mark.parametrize("persistent", [False, True])
def test_every_worker_and_epoch_draws_its_own_numbers_again_with_the_same_seed(persistent):
    def drawn() -> torch.Tensor:
        seed_everything(3, workers=True)
        loader = DataLoader(Noise(), batch_size=1, num_workers=2, persistent_workers=persistent)
        return torch.cat([batch for _ in range(2) for batch in loader])

    first = drawn()
    for generator in first.T:
        assert len(generator.unique()) == 12
    assert torch.equal(drawn(), first)
