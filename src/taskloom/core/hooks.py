"""The moments a task and its data may take part in, by Lightning's names.

Every hook is a method that does nothing until it is overridden; `overridden` tells which are, so that the loop can
gather them once before it starts and never calls the others. The order in which they run is the docstring of
`taskloom.loop.fit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from taskloom.core.transfer import move_to_device


def overridden(owner: object, name: str, base: type) -> Callable[..., Any] | None:
    """Return the bound method `name` if the class of `owner`, or `owner` itself, replaces that of `base`, else None."""
    if name in vars(owner) or getattr(type(owner), name) is not getattr(base, name):
        method: Callable[..., Any] = getattr(owner, name)
        return method
    return None


class TransferHooks:
    """How a batch reaches the device."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch while it is still where the loader left it."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; override for types that are no tensors, no collections of them, and have no `.to(device)`."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device, to augment it there for example."""
        return batch


class DataHooks(TransferHooks):
    """What tasks and data modules have in common: preparing data, and how a batch reaches the device.

    Attributes:
        prepare_data_per_node: call `prepare_data` once on every machine (True) or once in all.
        reload_dataloaders_every_n_epochs: call `train_dataloader` and `val_dataloader` again every so many epochs of a
            fit; 0 for never.
    """

    prepare_data_per_node: bool = True
    reload_dataloaders_every_n_epochs: int = 0

    def prepare_data(self) -> None:
        """Download or preprocess, in one process only (per node); set no state here."""


class TaskHooks(DataHooks):
    """The hooks of a `TaskModule`."""

    def setup(self, stage: str) -> None:
        """Build what needs the data or the process, in every process; `stage` is fit, validate, test or predict."""

    def teardown(self, stage: str) -> None:
        """Undo `setup`."""

    def configure_model(self) -> None:
        """Create layers late, on the device and in the dtype that the strategy asks for. May be called twice."""

    def on_fit_start(self) -> None:
        """Before anything else of `fit`, once the state of a checkpoint is restored."""

    def on_fit_end(self) -> None:
        """The last moment of `fit`."""

    def on_sanity_check_start(self) -> None:
        """Before the few validation batches that prove validation works."""

    def on_sanity_check_end(self) -> None:
        """After them."""

    def on_train_start(self) -> None:
        """Before the first epoch of this run."""

    def on_train_end(self) -> None:
        """After the last."""

    def on_train_epoch_start(self) -> None:
        """Before the first batch of an epoch."""

    def on_train_epoch_end(self) -> None:
        """After the last batch and its validation; what is logged here belongs to the epoch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Before a batch is trained on; returning -1 ends the epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the batch, and after the optimizer step where it completed a window."""

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Gradients can be read for the last time."""

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """Before the backward pass."""

    def on_after_backward(self) -> None:
        """After it; under fp16 the gradients are still scaled, within a window they are partial sums."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Gradients are complete and unscaled, not yet clipped."""

    def on_validation_model_zero_grad(self) -> None:
        """Free the gradients before validation within `fit`."""
        self.zero_grad()  # type: ignore[attr-defined]  # an nn.Module by the time it is used

    def on_validation_model_eval(self) -> None:
        """Switch to evaluation mode."""
        self.eval()  # type: ignore[attr-defined]

    def on_validation_model_train(self) -> None:
        """Switch back; the loop then restores the mode of every submodule as it was before the validation."""

    def on_test_model_eval(self) -> None:
        """Switch to evaluation mode."""
        self.eval()  # type: ignore[attr-defined]

    def on_test_model_train(self) -> None:
        """Switch back; the loop then restores the mode of every submodule."""

    def on_predict_model_eval(self) -> None:
        """Switch to evaluation mode."""
        self.eval()  # type: ignore[attr-defined]

    def on_predict_model_train(self) -> None:
        """Switch back; the loop then restores the mode of every submodule."""

    def on_validation_start(self) -> None:
        """Before a validation."""

    def on_validation_end(self) -> None:
        """After a validation; its metrics are known."""

    def on_validation_epoch_start(self) -> None:
        """Before its first batch."""

    def on_validation_epoch_end(self) -> None:
        """After its last batch; what is logged here is part of its metrics."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before a batch."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After a batch."""

    def on_test_start(self) -> None:
        """Before a test."""

    def on_test_end(self) -> None:
        """After a test; its metrics are known."""

    def on_test_epoch_start(self) -> None:
        """Before its first batch."""

    def on_test_epoch_end(self) -> None:
        """After its last batch; what is logged here is part of its metrics."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before a batch."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After a batch."""

    def on_predict_start(self) -> None:
        """Before a prediction."""

    def on_predict_end(self) -> None:
        """After a prediction."""

    def on_predict_epoch_start(self) -> None:
        """Before its first batch."""

    def on_predict_epoch_end(self) -> None:
        """After its last batch."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before a batch."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After a batch."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add data (JSON or tensors) to what is saved."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read back what `on_save_checkpoint` added."""
