"""Dtype policies and how they are carried out."""

from __future__ import annotations

from taskloom.precision.amp import LossScaling, MixedPrecision
from taskloom.precision.base import DtypePolicy, Precision
from taskloom.precision.native import NativePrecision

__all__ = ["DtypePolicy", "LossScaling", "MixedPrecision", "NativePrecision", "Precision"]
