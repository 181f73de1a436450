"""The GPU of an Apple computer, through Metal. There is one, and it has no float64.

Operations that torch has not brought to Metal raise an error; with `PYTORCH_ENABLE_MPS_FALLBACK=1` set before Python
starts torch runs them on the CPU instead (torch's own variable, which taskloom neither sets nor reads).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from taskloom.accelerators.base import Accelerator
from taskloom.accelerators.devices import parse_device_indices

_ABSENT_DTYPES = frozenset({torch.float64, torch.complex128})
_BF16_MACOS = (14, 0)


class MPSAccelerator(Accelerator):
    """The one Metal device."""

    name = "mps"
    device_type = "mps"
    process_group_backend = "gloo"

    @classmethod
    def is_available(cls) -> bool:
        """Return whether torch can use Metal here."""
        return torch.backends.mps.is_available()

    @classmethod
    def unavailable_reason(cls) -> str:
        """Return whether the build of torch or the machine is to blame."""
        if not torch.backends.mps.is_built():
            return f"torch {torch.__version__} is built without Metal; it takes the macOS build on an Apple computer"
        return "Metal needs an Apple or AMD GPU and macOS 12.3 or newer"

    @classmethod
    def device_count(cls) -> int:
        """Return 1 or 0."""
        return int(cls.is_available())

    @classmethod
    def parse_devices(cls, devices: int | str | Sequence[int]) -> list[int]:
        """Return `[0]`: there is one device."""
        return parse_device_indices(devices, cls.device_count(), "MPS")

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.mps.synchronize()

    def empty_cache(self) -> None:
        """Give unused cached memory back."""
        torch.mps.empty_cache()

    def memory_figures(self, device: torch.device) -> dict[str, float]:
        """Return bytes of tensors in use, held by the driver for this process, and recommended as the most."""
        return {
            "in_use": float(torch.mps.current_allocated_memory()),
            "reserved": float(torch.mps.driver_allocated_memory()),
            "total": float(torch.mps.recommended_max_memory()),
        }

    def rng_state(self, device: torch.device) -> torch.Tensor | None:
        """Return the state of the GPU's generator."""
        return torch.mps.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        """Restore the state of the GPU's generator."""
        torch.mps.set_rng_state(state)

    def supports(self, dtype: torch.dtype) -> bool:
        """Return False for float64 and complex128, and for bfloat16 before macOS 14."""
        if dtype is torch.bfloat16:
            return torch.backends.mps.is_macos_or_newer(*_BF16_MACOS)
        return dtype not in _ABSENT_DTYPES

    def describe(self, device: torch.device) -> str:
        """Return the device's name."""
        return "Apple GPU (Metal)"
