"""Dtype policies and how they are carried out."""

from __future__ import annotations

from taskloom.precision.base import DtypePolicy, Precision

__all__ = ["DtypePolicy", "Precision"]
