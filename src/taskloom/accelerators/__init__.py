"""Devices of one kind each."""

from __future__ import annotations

from taskloom.accelerators.base import Accelerator
from taskloom.accelerators.cpu import CPUAccelerator
from taskloom.accelerators.cuda import CUDAAccelerator
from taskloom.accelerators.mps import MPSAccelerator

__all__ = ["Accelerator", "CPUAccelerator", "CUDAAccelerator", "MPSAccelerator"]
