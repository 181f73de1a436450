"""Loaders from outside: checking, limiting, sharding and feeding them without rebuilding anything of the user's."""

from __future__ import annotations

from taskloom.data.combined import CombinedLoader
from taskloom.data.loaders import NamedLoader, feed, named_loaders, suggested_num_workers
from taskloom.data.reproducible import ReproducibleDataset
from taskloom.data.samplers import SeedableRandomSampler
from taskloom.data.seeding import seed_worker

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
