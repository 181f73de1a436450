"""Loaders from outside: checking, limiting, sharding and feeding them without rebuilding anything of the user's."""

from __future__ import annotations

from taskloom.data.loaders import NamedLoader, feed, named_loaders, suggested_num_workers

__all__ = ["NamedLoader", "feed", "named_loaders", "suggested_num_workers"]
