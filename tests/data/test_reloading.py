"""Loaders that are made anew every few epochs, and loaders without their first batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data.resuming import Noisy, listed, seed
from data.streams import Batches, Placed, stream
from loop.tiny import At, Line, equal, quiet, samples, weights
from torch.utils.data import DataLoader

from taskloom import CheckpointPolicy, DataModule, Fabric


class Growing(DataModule):
    """Makes a longer loader each time, of samples it chooses at random."""

    def __init__(self, every: int = 1, several: bool = False) -> None:
        super().__init__()
        self.reload_dataloaders_every_n_epochs, self.several = every, several
        self.made: list[tuple[str, int]] = []

    def make(self, name: str) -> Any:
        epoch = self.trainer.current_epoch
        self.made.append((name, epoch))
        chosen = torch.randperm(20)[: 4 + 2 * epoch].tolist()
        loader = DataLoader(torch.utils.data.Subset(samples(20), chosen), 2, shuffle=True)
        return {"a": loader, "b": loader} if self.several else loader

    def train_dataloader(self) -> Any:
        loader = self.make("train")
        return loader["a"] if self.several else loader

    def val_dataloader(self) -> Any:
        return self.make("val")


@pytest.mark.holds("DA-32")
@pytest.mark.parametrize(
    ("every", "epochs", "lengths"), [(0, [0], [2, 2, 2, 2]), (1, [0, 1, 2, 3], [2, 3, 4, 5]), (2, [0, 2], [2, 2, 4, 4])]
)
@pytest.mark.parametrize("several", [False, True])
def test_loaders_are_made_anew(every: int, epochs: list[int], lengths: list[int], several: bool) -> None:
    data, task, seen = Growing(every, several), Line(), []
    end = At(on_train_epoch_end=lambda trainer, _: seen.append(trainer.progress.batches_in_epoch))
    quiet(end, max_epochs=4).fit(task, datamodule=data)
    assert seen == lengths
    assert [epoch for name, epoch in data.made if name == "train"] == epochs
    assert [epoch for name, epoch in data.made if name == "val"] == epochs


@pytest.mark.holds("DA-32", "R3")
@pytest.mark.parametrize("every", [1, 2])
def test_every_checkpoint_leads_to_the_same_end(every: int, tmp_path: Path) -> None:
    def fit(folder: Path, **more: Any) -> tuple[Line, Any]:
        seed(3)
        task = Line()
        policy = CheckpointPolicy(every="1 steps", keep_last=-1, fsync=False)
        trainer = quiet(max_epochs=4, checkpoint=policy if not more else False, run_dir=folder)
        trainer.fit(task, datamodule=Growing(every), **more)
        return task, trainer

    task, trainer = fit(tmp_path)
    for number, checkpoint in enumerate(sorted((trainer.run_folder / "checkpoints").glob("step-*"))[:-1]):
        again, after = fit(tmp_path / str(number), ckpt_path=checkpoint)
        assert after.global_step == trainer.global_step
        assert equal(weights(task), weights(again)), checkpoint


def test_a_number_of_epochs_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"reload_dataloaders_every_n_epochs is a whole number.*Got: -1"):
        quiet(max_epochs=1).fit(Line(), datamodule=Growing(-1))


@pytest.mark.holds("DA-31")
@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_of_a_map_style_loader_are_not_read(workers: int) -> None:
    data = Noisy(14)
    loader = DataLoader(data, 2, shuffle=True, collate_fn=listed, num_workers=workers)
    seed(2)
    whole = [[sample[0] for sample in batch] for batch in loader]
    data.reads = 0
    seed(2)
    rest = Fabric(accelerator="cpu").skip_first_batches(loader, 4)
    assert len(rest) == 3
    assert [[sample[0] for sample in batch] for batch in rest] == whole[4:]
    assert data.reads == (0 if workers else 6)
    assert len(loader) == 7


@pytest.mark.holds("DA-31")
def test_other_loaders_are_read_up_to_there() -> None:
    fabric = Fabric(accelerator="cpu")
    assert [batch[0][0] for batch in fabric.skip_first_batches(stream(Placed(9)), 3)] == [6.0, 8.0]
    rest = fabric.skip_first_batches(Batches(5), 2)
    assert len(list(rest)) == 3
    with pytest.raises(TypeError, match=r"whose batches are skipped is unknown"):
        len(rest)
    moved = fabric.skip_first_batches(fabric.setup_dataloaders(DataLoader(torch.arange(6), 2)), 1)
    assert [batch.tolist() for batch in moved] == [[2, 3], [4, 5]]
    with pytest.raises(ValueError, match=r"0 or more.*Got: -1"):
        fabric.skip_first_batches(Batches(), -1)
