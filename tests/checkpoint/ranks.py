"""Processes of a gloo group, forked from the test so that they start at once."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist


def on_ranks(world_size: int, action: Callable[[int], Any], folder: Path) -> list[Any]:
    """Run an action with the rank on every process of a group; return what each returned, or the exception's text.

    Args:
        world_size: number of processes.
        action: may be a closure; what it returns is pickled.
        folder: an empty place for the rendezvous.
    """
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"

    def run(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
        try:
            results.put((rank, action(rank)))
        except Exception as error:
            results.put((rank, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        finally:
            dist.destroy_process_group()

    processes = [context.Process(target=run, args=(rank,)) for rank in range(world_size)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks in processes with threads
        for process in processes:
            process.start()
    returned = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    return [returned[rank] for rank in range(world_size)]
