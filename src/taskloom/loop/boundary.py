"""Saving a training that has failed, from the last moment at which it was whole.

A step that fails leaves the weights of the step before, because they change in the optimizer's step only; but it has
drawn random numbers, counted batches and updated running statistics. So the state of the last moment between two
windows is kept, and the checkpoint holds that: a run that is resumed from it trains on the failed batch as if nothing
had happened. Where the optimizer's step itself fails, weights may be half changed, and nothing is saved.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from taskloom.loop.saving import Saver


class Boundary:
    """The state between two windows.

    Args:
        saver: knows what a checkpoint holds.
        module: whose parameters are watched and whose buffers are kept.
    """

    def __init__(self, saver: Saver, module: nn.Module) -> None:
        self._saver = saver
        self._parameters = list(module.parameters())
        self._buffers = [buffer for buffer in module.buffers() if buffer.numel()]
        self._kept: list[Tensor] = [torch.empty_like(buffer) for buffer in self._buffers]
        self._versions: list[int] = []
        self._state: dict[str, Any] = {}
        self.micro_batches = -1

    def take(self, micro_batches: int) -> None:
        """Keep this moment, which is after so many micro-batches."""
        self._state = deepcopy(self._saver.state())
        self._versions = [parameter._version for parameter in self._parameters]
        with torch.no_grad():
            for kept, buffer in zip(self._kept, self._buffers, strict=True):
                kept.copy_(buffer)
        self.micro_batches = micro_batches

    @property
    def weights_unchanged(self) -> bool:
        """Whether no parameter has been written to since; torch counts writes in place."""
        return self._versions == [parameter._version for parameter in self._parameters]

    def put_back(self) -> dict[str, Any]:
        """Restore the buffers and return the state."""
        with torch.no_grad():
            for kept, buffer in zip(self._kept, self._buffers, strict=True):
                buffer.copy_(kept)
        return self._state
