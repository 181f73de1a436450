"""Loaders from outside: checking, limiting, sharding and feeding them without rebuilding anything of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskloom.core.lazy import on_first_use
from taskloom.data.loaders import NamedLoader, feed, named_loaders, suggested_num_workers

if TYPE_CHECKING:
    from taskloom.data.combined import CombinedLoader
    from taskloom.data.reproducible import ReproducibleDataset
    from taskloom.data.samplers import SeedableRandomSampler
    from taskloom.data.seeding import seed_worker

# Loaded on first use: what users put into their loaders.
_HOME = {
    "CombinedLoader": "taskloom.data.combined",
    "ReproducibleDataset": "taskloom.data.reproducible",
    "SeedableRandomSampler": "taskloom.data.samplers",
    "seed_worker": "taskloom.data.seeding",
}

__all__ = [
    "CombinedLoader",
    "NamedLoader",
    "ReproducibleDataset",
    "SeedableRandomSampler",
    "feed",
    "named_loaders",
    "seed_worker",
    "suggested_num_workers",
]

__getattr__ = on_first_use(__name__, _HOME)
