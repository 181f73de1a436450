"""torchdata's StatefulDataLoader, and anything else that has its two methods, goes on from its own state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from data.resuming import Noisy, listed
from data.streams import Placed, mine, train
from torch.utils.data import DataLoader, Dataset

from taskloom.data.generators import Generators
from taskloom.data.sources import source_of
from taskloom.data.stateful import StatefulSource

torchdata = pytest.importorskip("torchdata.stateful_dataloader")
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it


class Plain(Dataset):
    """Samples that draw nothing: torchdata does not restore what its workers draw."""

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> float:
        return float(index)


class Silent(Placed):
    """Draws nothing.

    It begins anew when it is iterated over again, or never: torchdata does not go on from the state
    of a worker whose data set has done so at its end.
    """

    def __init__(self, length: int = 21, again: bool = True) -> None:
        super().__init__(length)
        self.again = again

    def __iter__(self) -> Any:
        own = mine(self.length)
        self.at = 0 if self.again and self.at >= len(own) else self.at
        while self.at < len(own):
            self.at += 1
            yield [float(own[self.at - 1])]


def loader(dataset: Any, workers: int = 0, **options: Any) -> Any:
    return torchdata.StatefulDataLoader(dataset, 2, num_workers=workers, collate_fn=listed, **options)


LOADERS: dict[str, Callable[[], Any]] = {
    "map-style, with draws": lambda: loader(Noisy(), shuffle=True),
    "iterable": lambda: loader(Silent()),
    "map-style, 2 workers": lambda: loader(Plain(), 2, shuffle=True),
    "map-style, 2 workers that persist": lambda: loader(Plain(), 2, shuffle=True, persistent_workers=True),
    "iterable, 2 workers": lambda: loader(Silent(again=False), 2),
    "every fourth state": lambda: loader(Plain(), 2, shuffle=True, snapshot_every_n_steps=4),
}


@pytest.mark.holds("R3", "DA-30")
@pytest.mark.parametrize("name", LOADERS)
def test_a_stateful_data_loader_goes_on_at_any_batch(name: str) -> None:
    whole = train(LOADERS[name])
    for stop in range(1, len(whole), 5 if "worker" in name or "fourth" in name else 1):
        assert train(LOADERS[name], [stop]) == whole, stop


@pytest.mark.holds("DA-30")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_four_workers_and_two_kills() -> None:
    whole = train(lambda: loader(Silent(30, again=False), 4), epochs=1)
    assert train(lambda: loader(Silent(30, again=False), 4), [3, 8], epochs=1) == whole


@pytest.mark.holds("DA-30")
def test_the_state_is_that_of_what_was_trained_on_not_of_what_was_read() -> None:
    source = source_of(loader(Silent()), Generators())
    assert isinstance(source, StatefulSource)
    source.begin_epoch(0, resumed=False)
    batches = source.batches(0)
    read = [next(batches) for _ in range(4)]
    after = source_of(loader(Silent()), Generators())
    after.load_state_dict(source.state_dict(0, 2))
    after.begin_epoch(0, resumed=True)
    assert next(after.batches(2)) == read[2]


def test_a_plain_loader_is_not_taken_for_one_with_a_state() -> None:
    assert not isinstance(source_of(DataLoader(Plain()), Generators()), StatefulSource)
