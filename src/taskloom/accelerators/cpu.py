"""The processor. One device whatever its cores; `devices=2` means two processes."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path

import torch

from taskloom.accelerators.base import Accelerator
from taskloom.accelerators.devices import parse_process_count

_STATM = Path("/proc/self/statm")  # Linux; its second number is the resident set in pages


class CPUAccelerator(Accelerator):
    """The processor and the main memory."""

    name = "cpu"
    device_type = "cpu"
    process_group_backend = "gloo"
    synchronous = True

    @classmethod
    def is_available(cls) -> bool:
        """Return True."""
        return True

    @classmethod
    def unavailable_reason(cls) -> str:
        """Return an empty text: there always is one."""
        return ""

    @classmethod
    def device_count(cls) -> int:
        """Return 1: one process uses all cores through torch's threads."""
        return 1

    @classmethod
    def parse_devices(cls, devices: int | str | Sequence[int]) -> list[int]:
        """Return one number per process that was asked for."""
        return list(range(parse_process_count(devices)))

    def device(self, index: int) -> torch.device:
        """Return the one CPU device."""
        return torch.device("cpu")

    def memory_figures(self, device: torch.device) -> dict[str, float]:
        """Return bytes of this process in use and at peak, and of the machine in all."""
        page = os.sysconf("SC_PAGE_SIZE")
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        figures = {
            "peak": float(largest if platform.system() == "Darwin" else largest * 1024),
            "total": float(os.sysconf("SC_PHYS_PAGES") * page),
        }
        if _STATM.exists():
            figures["in_use"] = float(int(_STATM.read_text().split()[1]) * page)
        return figures

    def describe(self, device: torch.device) -> str:
        """Return the processor's architecture and the threads torch uses."""
        return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
