from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler

from taskloom import DataModule


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


def module(**options) -> DataModule:
    samples = torch.arange(10)
    return DataModule.from_datasets(samples, samples, {"a": samples}, [samples, samples], **options)


@pytest.mark.holds("DA-01")
def test_each_stage_has_loaders_in_the_form_its_data_sets_had():
    data = module(batch_size=4)
    assert isinstance(data.train_dataloader().sampler, RandomSampler)
    assert isinstance(data.val_dataloader().sampler, SequentialSampler)
    assert list(data.test_dataloader()) == ["a"]
    assert len(data.predict_dataloader()) == 2


@pytest.mark.holds("DA-13", "DA-18")
def test_batch_size_is_every_loaders_and_only_training_drops_the_last():
    data = module(batch_size=4, drop_last=True)
    assert [len(batch) for batch in data.train_dataloader()] == [4, 4]
    assert [len(batch) for batch in data.val_dataloader()] == [4, 4, 2]


@pytest.mark.holds("DA-15", "DA-17")
def test_the_options_of_workers_reach_the_loader():
    loader = module(
        num_workers=2, prefetch_factor=3, multiprocessing_context="spawn", in_order=False
    ).train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.in_order) == (2, 3, False)
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert loader.persistent_workers
    assert not module(num_workers=2, persistent_workers=False).train_dataloader().persistent_workers


@pytest.mark.holds("DA-17")
def test_without_workers_nothing_is_asked_of_them():
    loader = module(multiprocessing_context="spawn").train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.multiprocessing_context) == (0, False, None)


@pytest.mark.holds("DA-15")
def test_batches_come_in_order_from_several_workers():
    data = module(batch_size=2, num_workers=2, multiprocessing_context="fork", persistent_workers=False)
    assert torch.equal(torch.cat(list(data.val_dataloader())), torch.arange(10))


@pytest.mark.holds("DA-16")
def test_pinning_is_the_loaders():
    assert module(pin_memory=True).train_dataloader().pin_memory
    assert not module().train_dataloader().pin_memory


def test_a_stream_is_not_shuffled():
    assert next(iter(DataModule.from_datasets(Stream(), batch_size=5).train_dataloader())).tolist() == list(range(5))


def test_batches_are_made_by_the_collate_function():
    assert next(iter(module(batch_size=3, collate_fn=tuple).val_dataloader())) == (0, 1, 2)


@pytest.mark.parametrize("name", ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"])
def test_a_loader_that_is_not_there_says_what_to_write(name):
    with pytest.raises(NotImplementedError, match=f"DataModule has no {name}. Fix: write one, or pass loaders"):
        getattr(DataModule(), name)()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_does_not_drag_the_trainer_along(duplicate):
    data = DataModule()
    data.trainer, data.size = lambda: None, 3  # a lambda, which cannot be pickled
    copied = duplicate(data)
    assert copied.trainer is None
    assert copied.size == 3
