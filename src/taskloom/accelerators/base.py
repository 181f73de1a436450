"""What a kind of device can do; one file beside this one per kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch


class Accelerator(ABC):
    """Devices of one kind: whether they are here, which were asked for, their memory, their random numbers.

    Third parties register one through the entry point group `taskloom.accelerators`.

    Attributes:
        name: what a user types.
        device_type: torch's name of the device.
        process_group_backend: of `torch.distributed` for tensors on these devices.
        synchronous: reading a number from the device waits for nothing, so it may be done every step. True on a CPU
            only.
    """

    name: ClassVar[str]
    device_type: ClassVar[str]
    process_group_backend: ClassVar[str]
    synchronous: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Return whether this machine has such a device and torch can use it. Must not initialise the device."""

    @classmethod
    @abstractmethod
    def unavailable_reason(cls) -> str:
        """Return what is missing and how to get it, as a sentence for an error text."""

    @classmethod
    @abstractmethod
    def device_count(cls) -> int:
        """Return how many devices there are; for a CPU how many processes `devices="auto"` means."""

    @classmethod
    @abstractmethod
    def parse_devices(cls, devices: int | str | Sequence[int]) -> list[int]:
        """Return device indices for `2` (how many), `"0,3"` or `[0, 3]` (which), `"auto"` or `-1` (all).

        Raises:
            ValueError: there are fewer, the text cannot be read, or an index repeats.
        """

    def device(self, index: int) -> torch.device:
        """Return the torch device of an index."""
        return torch.device(self.device_type, index)

    def activate(self, device: torch.device) -> None:
        """Make `device` the current one of this process."""

    def synchronize(self) -> None:
        """Wait until the device has done all it was asked."""

    def empty_cache(self) -> None:
        """Give cached memory back."""

    def memory_figures(self, device: torch.device) -> dict[str, float]:
        """Return bytes in use, at peak and in all, by name; empty where unknown."""
        return {}

    def rng_state(self, device: torch.device) -> torch.Tensor | None:
        """Return the state of the device's generator, 1-dim uint8 on the CPU; None where the CPU's is the only one."""
        return None

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        """Restore what `rng_state` returned."""

    def supports(self, dtype: torch.dtype) -> bool:
        """Return whether the device computes in `dtype`. Must not initialise the device."""
        return True

    def advice(self, dtype: torch.dtype, device: torch.device) -> str:
        """Return a sentence on why computing in a supported `dtype` is a poor choice on `device`, or an empty text."""
        return ""

    def describe(self, device: torch.device) -> str:
        """Return the device's name for people."""
        return str(device)
