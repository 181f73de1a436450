"""Training losses as numbers, without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from taskloom.core.loss import Loss


def loss_of(outputs: Any) -> Tensor | None:
    """Return the 0-dim detached loss in what `on_train_batch_end` is given, None where there is none."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("loss")
    if isinstance(outputs, Loss):
        outputs = outputs.mean
    if not isinstance(outputs, Tensor) or outputs.numel() != 1:
        return None
    return outputs.detach().reshape(())


class LossReader:
    """Holds losses back until reading them is cheap: at once on a CPU, together at a flush elsewhere."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Tensor]] = []

    def add(self, step: int, outputs: Any) -> list[tuple[int, float]]:
        """Take what a training step returned; return the (step, loss) pairs that can be read now."""
        loss = loss_of(outputs)
        if loss is None:
            return []
        if loss.device.type == "cpu":
            return [(step, loss.item())]
        self._waiting.append((step, loss))
        return []

    def read(self) -> list[tuple[int, float]]:
        """Return all (step, loss) pairs that were held back, with one transfer."""
        if not self._waiting:
            return []
        steps = [step for step, _ in self._waiting]
        values: list[float] = torch.stack([loss.float() for _, loss in self._waiting]).tolist()
        self._waiting.clear()
        return list(zip(steps, values, strict=True))
