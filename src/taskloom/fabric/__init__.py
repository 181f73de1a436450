"""The resolved graph as one object, for people who own their loop."""

from __future__ import annotations

from taskloom.fabric.fabric import Fabric
from taskloom.fabric.module import FabricLoader, FabricModule

__all__ = ["Fabric", "FabricLoader", "FabricModule"]
