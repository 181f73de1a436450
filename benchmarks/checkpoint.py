"""Checkpoints of a large state: the blocking write, the time that training stands still, the memory that loading takes.

`python benchmarks/checkpoint.py PROGRAM [MEGAPARAMETERS]` prints one number:
`safetensors` the seconds that safetensors' own writer takes; `write` those of a save, hashes included, without fsync;
`first_stall`, `stall` the time of handing the state to the background, by that of a copy right before it, in new memory
and in memory that was used before; `load` the memory that loading takes at its peak, by the largest tensor.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

MEGAPARAMETERS = 60  # with the two moments of AdamW 0.72 GB
WIDTH, SAVES = 1000, 3


def _state(megaparameters: int) -> tuple[Any, Any, dict[str, Any]]:
    """A model and an optimizer that has taken a step, and all of their tensors by name."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(megaparameters)])
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": tensor for name, tensor in slots.items() if tensor.dim()})
    return model, optimizer, tensors


def _fastest(action: Callable[[], Any], after: Callable[[], Any] = lambda: None) -> float:
    """Return the seconds of the fastest of a few, so that pages that were never written to do not count."""
    seconds = []
    for _ in range(SAVES):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
        after()
    return min(seconds)


def _content(model: Any, optimizer: Any) -> Any:
    from taskloom.checkpoint import CheckpointContent, find_aliases
    from taskloom.resolve import resolve

    strategy = resolve(accelerator="cpu").strategy
    optimizers = {"optimizer": optimizer}
    shards = list(strategy.model_shards(model))
    return CheckpointContent(
        model=shards,
        optimizer=list(strategy.optimizer_shards(model, optimizers)),
        state={"optimizers": strategy.optimizer_state(model, optimizers)},
        aliases=find_aliases((shard.name, shard.tensor) for shard in shards),
    )


def measured(program: str, megaparameters: int) -> float:
    """Run one program."""
    from safetensors.torch import save_file

    from taskloom.checkpoint import write_checkpoint

    if program == "load":
        return _peak_of_loading(megaparameters)
    model, optimizer, tensors = _state(megaparameters)
    with tempfile.TemporaryDirectory() as folder:
        file, target = Path(folder) / "state.safetensors", Path(folder) / "step-1"
        if program == "safetensors":
            return _fastest(lambda: save_file(tensors, file), file.unlink)
        if program == "write":
            return _fastest(
                lambda: write_checkpoint(target, _content(model, optimizer), fsync=False), lambda: shutil.rmtree(target)
            )
        return statistics.median(_stalls(model, optimizer, tensors, target, warm=program == "stall"))


def _stalls(model: Any, optimizer: Any, tensors: dict[str, Any], target: Path, *, warm: bool) -> list[float]:
    """Return the times of handing a state to the background, each by that of a copy right before it."""
    from taskloom.checkpoint import write_checkpoint
    from taskloom.checkpoint.background import BackgroundWriter
    from taskloom.checkpoint.snapshot import SnapshotBuffers

    buffers, background, ratios = SnapshotBuffers(), BackgroundWriter(lambda: None), []
    copies = {name: tensor.clone() for name, tensor in tensors.items()} if warm else {}
    for number in range(2 * SAVES + 1 if warm else 1):  # only a process's first is in memory that was never used
        started = time.perf_counter()
        if warm:
            for name, tensor in tensors.items():
                copies[name].copy_(tensor)
        else:
            copies = {name: tensor.clone() for name, tensor in tensors.items()}
        copied = time.perf_counter()
        taken = buffers.take(_content(model, optimizer))
        background.submit(partial(write_checkpoint, target, taken, fsync=False), target.name)
        stalled = time.perf_counter()
        background.wait()
        del taken
        shutil.rmtree(target)
        if number or not warm:
            ratios.append((stalled - copied) / (copied - started))
    return ratios


def _peak_of_loading(megaparameters: int) -> float:
    """Return the memory that loading takes at its peak beside the state itself, in sizes of the largest tensor.

    Pages of the mapped file are not counted: the system takes them back when it needs them.
    """
    import threading

    from taskloom.checkpoint import open_checkpoint, write_checkpoint
    from taskloom.resolve import resolve

    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "step-1"
        model, optimizer, tensors = _state(megaparameters)
        largest = max(tensor.nbytes for tensor in tensors.values())
        write_checkpoint(target, _content(model, optimizer), fsync=False)
        optimizer = type(optimizer)(model.parameters())  # as a new process has it: the moments come with the loading
        moments = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("optimizer."))
        del tensors
        gc.collect()
        before, peak, done = own(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.001):
                peak[0] = max(peak[0], own())

        watcher = threading.Thread(target=watch)
        watcher.start()
        strategy = resolve(accelerator="cpu").strategy
        with open_checkpoint(target, verify=True) as reader:
            strategy.load_model(model, reader.model_tensors(), strict=True)
            states = reader.state["optimizers"]
            strategy.load_optimizers(model, {"optimizer": optimizer}, states, reader.optimizer_tensors())
        done.set()
        watcher.join()
        return (peak[0] - before - moments) / largest


def measure(rounds: int, peers: bool) -> list[Any]:
    """Return the rows of the table."""
    from benchmarks.budgets import CHECKPOINT_STALL, CHECKPOINT_WRITE
    from benchmarks.measure import Row, in_turns, median_ratio, python

    del peers
    names = ("safetensors", "write", "first_stall", "stall", "load")
    seen = in_turns({name: python(Path(__file__), name) for name in names}, min(rounds, 3))
    figures = {name: statistics.median(values) for name, values in seen.items()}
    write = median_ratio(seen["write"], seen["safetensors"])
    size, limit = f"{3 * 4 * MEGAPARAMETERS / 1000:.2f} GB", f"{CHECKPOINT_STALL:.1f}× a copy"

    def stall(name: str, what: str) -> Row:
        return Row(what, f"{figures[name]:.2f}× a copy", figures[name], limit, figures[name] <= CHECKPOINT_STALL)

    return [
        Row(f"{size} of state, safetensors' own write", f"{figures['safetensors']:.2f} s", None),
        Row(
            "checkpoint of it, blocking, hashes included, without fsync",
            f"{figures['write']:.2f} s",
            write,
            f"{CHECKPOINT_WRITE:.1f}× safetensors",
            write <= CHECKPOINT_WRITE,
        ),
        stall("first_stall", "stall of an asynchronous save, in new memory"),
        stall("stall", "stall of an asynchronous save, in memory used before"),
        Row(
            "memory that loading it takes beside the state, at its peak",
            f"{figures['load']:.2f}× the largest tensor",
            None,
        ),
    ]


if __name__ == "__main__":
    number = int(sys.argv[2]) if len(sys.argv) > 2 else MEGAPARAMETERS
    sys.stdout.write(f"\n{measured(sys.argv[1], number)}\n")
