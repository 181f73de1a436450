"""Small checkpoint contents that differ by step and run."""

from __future__ import annotations

from typing import Any

import torch

from taskloom.checkpoint import CheckpointContent, Shard


def make_content(step: int = 10, run_id: str = "run-a", seed: int | None = None, **changes: Any) -> CheckpointContent:
    generator = torch.Generator().manual_seed(step if seed is None else seed)
    weight = torch.randn(4, 3, generator=generator)
    fields: dict[str, Any] = {
        "model": [Shard.whole("net.weight", weight), Shard.whole("net.bias", torch.randn(4, generator=generator))],
        "optimizer": [
            Shard.whole("net.weight.exp_avg", weight * 2),
            Shard.whole("net.weight.step", torch.tensor(float(step))),
        ],
        "state": {"progress": {"steps": step}, "rng": {"torch": torch.arange(16, dtype=torch.uint8)}},
        "config": "seed: 1\n",
        "metrics": {"val/loss": (1.0 / step, step)},
        "step": step,
        "epoch": 1,
        "run_id": run_id,
    }
    return CheckpointContent(**{**fields, **changes})
