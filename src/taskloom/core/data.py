"""`DataModule`: the loaders of a data set, and what must happen before they exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from taskloom.core.errors import explain
from taskloom.core.hooks import DataHooks
from taskloom.core.hparams import HyperparametersMixin

if TYPE_CHECKING:
    from taskloom.trainer import Trainer


class DataModule(DataHooks, HyperparametersMixin):
    """Everything about the data in one class that can be shared between tasks.

    `batch_size` of a loader is always per device and per micro-batch; the line printed at the start of a run
    multiplies it out.

    Attributes:
        trainer: the `Trainer` that uses it or did so last, else None.
    """

    trainer: Trainer | None = None

    def setup(self, stage: str) -> None:
        """Read and split the data, in every process; `stage` is fit, validate, test or predict."""

    def teardown(self, stage: str) -> None:
        """Undo `setup`."""

    def train_dataloader(self) -> Any:
        """Return the training loader."""
        raise NotImplementedError(
            explain(f"{type(self).__name__} has no train_dataloader", fix="write one, or pass loaders to fit")
        )

    def val_dataloader(self) -> Any:
        """Return a validation loader, a list of them, or a dict that names them."""
        raise NotImplementedError(
            explain(f"{type(self).__name__} has no val_dataloader", fix="write one, or pass loaders")
        )

    def test_dataloader(self) -> Any:
        """Return a test loader, a list of them, or a dict that names them."""
        raise NotImplementedError(
            explain(f"{type(self).__name__} has no test_dataloader", fix="write one, or pass loaders")
        )

    def predict_dataloader(self) -> Any:
        """Return a prediction loader, a list of them, or a dict that names them."""
        raise NotImplementedError(
            explain(f"{type(self).__name__} has no predict_dataloader", fix="write one, or pass loaders")
        )

    def on_exception(self, exception: BaseException) -> None:
        """Clean up after a failure."""

    def state_dict(self) -> dict[str, Any]:
        """Return data to save in checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled data module must not drag the Trainer along, into the workers of a loader for example.
        return {**self.__dict__, "trainer": None}

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Dataset[Any] | None = None,
        val_dataset: Dataset[Any] | Sequence[Dataset[Any]] | Mapping[str, Dataset[Any]] | None = None,
        test_dataset: Dataset[Any] | Sequence[Dataset[Any]] | Mapping[str, Dataset[Any]] | None = None,
        predict_dataset: Dataset[Any] | Sequence[Dataset[Any]] | Mapping[str, Dataset[Any]] | None = None,
        *,
        batch_size: int = 1,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        persistent_workers: bool | None = None,
        prefetch_factor: int | None = None,
        multiprocessing_context: str | None = None,
        in_order: bool = True,
    ) -> DataModule:
        """Make a data module of data sets.

        Args:
            train_dataset: shuffled unless it is iterable.
            val_dataset: one, a list, or a dict that names them; the same for the next two.
            test_dataset: for `test`.
            predict_dataset: for `predict`.
            batch_size: samples per device and micro-batch.
            num_workers: processes that load; 0 loads in the main process. See `taskloom.data.suggested_num_workers`.
            collate_fn: makes a batch of a list of samples.
            pin_memory: page-locked batches, which an accelerator copies without blocking.
            drop_last: leave out a short last training batch.
            persistent_workers: keep workers over epochs; by default when there are any.
            prefetch_factor: batches each worker loads ahead.
            multiprocessing_context: how workers start: fork, spawn or forkserver.
            in_order: yield batches in order; False yields what is ready first.
        """

        def loader(dataset: Dataset[Any], training: bool) -> DataLoader[Any]:
            return DataLoader(
                dataset,
                batch_size=batch_size,
                shuffle=training and not isinstance(dataset, IterableDataset),
                num_workers=num_workers,
                collate_fn=collate_fn,
                pin_memory=pin_memory,
                drop_last=drop_last and training,
                persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
                prefetch_factor=prefetch_factor,
                multiprocessing_context=multiprocessing_context if num_workers else None,
                in_order=in_order,
            )

        def loaders(datasets: Any) -> Any:
            if isinstance(datasets, Mapping):
                return {name: loader(dataset, training=False) for name, dataset in datasets.items()}
            if isinstance(datasets, Sequence):
                return [loader(dataset, training=False) for dataset in datasets]
            return loader(datasets, training=False)

        made = cls()
        if train_dataset is not None:
            made.train_dataloader = lambda: loader(train_dataset, training=True)  # type: ignore[method-assign]
        for name, datasets in (("val", val_dataset), ("test", test_dataset), ("predict", predict_dataset)):
            if datasets is not None:
                setattr(made, f"{name}_dataloader", lambda datasets=datasets: loaders(datasets))
        return made
