"""The sets of tensors in a checkpoint of a run: those of the model, and what callbacks keep beside them."""

from __future__ import annotations

from taskloom.checkpoint import CheckpointReader, Shard
from taskloom.core.errors import explain
from taskloom.loop.run import Run

_OWN = ("model", "optimizer")


def tensor_sets(run: Run) -> dict[str, list[Shard]]:
    """Return this process's pieces of the model, under `model`, and of what callbacks add, by kind.

    Raises:
        ValueError: two callbacks use one kind.
    """
    sets = {"model": list(run.strategy.model_shards(run.module))}
    for hook in run.hooks.of_callbacks("checkpoint_shards"):
        for kind, pieces in hook().items():
            if kind != "model" and (kind in sets or kind in _OWN):
                raise ValueError(
                    explain(
                        f"Two sets of tensors in a checkpoint would be called {kind!r}",
                        why="each is a folder of its own",
                        fix="give one of the callbacks another name, as EMAWeightAveraging(kind='slow') does",
                    )
                )
            sets[kind] = list(pieces)
    return sets


def load_further(run: Run, reader: CheckpointReader) -> None:
    """Hand a checkpoint to the callbacks that keep tensors of their own in it."""
    for hook in run.hooks.of_callbacks("load_checkpoint_shards"):
        hook(reader)
