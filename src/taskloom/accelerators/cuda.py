"""NVIDIA GPUs, and AMD GPUs through ROCm, which torch presents under the same name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from taskloom.accelerators.base import Accelerator
from taskloom.accelerators.devices import parse_device_indices
from taskloom.core.errors import explain

BF16_CAPABILITY = (8, 0)
"""Compute capability with bfloat16 arithmetic (Ampere); older NVIDIA GPUs emulate it."""


class CUDAAccelerator(Accelerator):
    """GPUs that `torch.cuda` drives, chosen and ordered by `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`."""

    name = "cuda"
    device_type = "cuda"
    process_group_backend = "nccl"

    @classmethod
    def is_available(cls) -> bool:
        """Return whether torch sees a GPU; asks the driver's management library, so that a process may still fork."""
        return cls.device_count() > 0

    @classmethod
    def unavailable_reason(cls) -> str:
        """Return whether the build of torch or the machine is to blame."""
        if torch.version.cuda is None and torch.version.hip is None:
            return f"torch {torch.__version__} is built without CUDA or ROCm; install a build for your GPU"
        return (
            f"torch {torch.__version__} can use CUDA or ROCm but sees no GPU; check the driver with nvidia-smi "
            "(or rocm-smi), and that CUDA_VISIBLE_DEVICES is not empty"
        )

    @classmethod
    def device_count(cls) -> int:
        """Return how many GPUs are visible."""
        return torch.cuda.device_count()

    @classmethod
    def parse_devices(cls, devices: int | str | Sequence[int]) -> list[int]:
        """Return indices among the visible GPUs."""
        return parse_device_indices(devices, cls.device_count(), "CUDA")

    @classmethod
    def usable_devices(cls, count: int = -1) -> list[int]:
        """Return the first `count` GPUs (-1: all) that give this process memory, as GPUs in exclusive mode may not.

        Initialises CUDA in this process.

        Raises:
            ValueError: there are fewer.
        """
        usable: list[int] = []
        for index in range(cls.device_count()):
            if len(usable) == count:
                break
            try:
                torch.zeros(1, device=torch.device("cuda", index))
            except RuntimeError:  # busy or unavailable, as the driver says; the next one may be free
                continue
            usable.append(index)
        if len(usable) < count:
            raise ValueError(
                explain(
                    f"{count} usable CUDA devices were asked for and {len(usable)} were found",
                    got=usable,
                    why="the others are held by other processes, or are broken",
                    fix=f"devices={len(usable)}, or free the others",
                )
            )
        return usable

    def activate(self, device: torch.device) -> None:
        """Make `device` the current GPU of this process."""
        torch.cuda.set_device(device)

    def synchronize(self) -> None:
        """Wait for the current GPU."""
        torch.cuda.synchronize()

    def empty_cache(self) -> None:
        """Give unused cached memory back to the driver."""
        torch.cuda.empty_cache()

    def memory_figures(self, device: torch.device) -> dict[str, float]:
        """Return bytes of tensors in use and at peak, reserved by the allocator, and of the GPU in all."""
        return {
            "in_use": float(torch.cuda.memory_allocated(device)),
            "peak": float(torch.cuda.max_memory_allocated(device)),
            "reserved": float(torch.cuda.memory_reserved(device)),
            "total": float(torch.cuda.get_device_properties(device).total_memory),
        }

    def rng_state(self, device: torch.device) -> torch.Tensor | None:
        """Return the state of the GPU's generator."""
        return torch.cuda.get_rng_state(device)

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        """Restore the state of the GPU's generator."""
        torch.cuda.set_rng_state(state, device)

    def advice(self, dtype: torch.dtype, device: torch.device) -> str:
        """Say that bfloat16 is emulated, on NVIDIA GPUs older than Ampere."""
        if dtype is not torch.bfloat16 or torch.version.hip is not None:
            return ""
        capability = torch.cuda.get_device_capability(device)
        if capability >= BF16_CAPABILITY:
            return ""
        needed, has = (".".join(map(str, version)) for version in (BF16_CAPABILITY, capability))
        return (
            f"{self.describe(device)} has compute capability {has} and only emulates bfloat16, slowly; "
            f"it takes {needed}. precision='16-mixed' is fast here"
        )

    def describe(self, device: torch.device) -> str:
        """Return the GPU's product name."""
        return torch.cuda.get_device_name(device)
