"""What an exponential moving average of the weights costs: its part of an optimizer step of a small transformer.

    python benchmarks/weight_averaging.py [steps]

4 layers of width 256 (3.3 million parameters), 8 sequences of 128 tokens, AdamW, one thread. Averaging passes over the
weights once per step, so its part falls with the number of tokens that a step learns from, and these are few. Both are
timed within the same steps, because they are too far apart for a ratio of two programs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

# Largest ratio of a step with averaging to one without.
BUDGET = 1.02


def run(steps: int) -> float:
    """Return the ratio of a step with averaging to one without; the median over steps."""
    import torch
    from torch import nn

    from taskloom import TaskModule, Trainer
    from taskloom.callbacks import EMAWeightAveraging

    torch.set_num_threads(1)
    torch.manual_seed(0)
    began: list[float] = []
    averaging: list[float] = []

    class Small(TaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(256, 256)
            layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, dropout=0.0)
            self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            self.head = nn.Linear(256, 256)

        def training_step(self, batch, batch_idx):
            began.append(time.perf_counter())
            return nn.functional.cross_entropy(self.head(self.blocks(self.embed(batch))).flatten(0, 1), batch.flatten())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    class Timed(EMAWeightAveraging):
        def on_train_batch_end(self, *arguments):
            start = time.perf_counter()
            super().on_train_batch_end(*arguments)
            averaging.append(time.perf_counter() - start)

    task = Small()
    batches = torch.utils.data.DataLoader(torch.randint(0, 256, ((steps + 3) * 8, 128)), batch_size=8)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Trainer.barebones(accelerator="cpu", max_epochs=1, callbacks=[Timed()]).fit(task, batches)
    step = [later - earlier for earlier, later in pairwise(began)]
    pairs = list(zip(step, averaging, strict=False))[2:]  # the first update copies, the next still faults pages in
    return statistics.median(whole / (whole - part) for whole, part in pairs)


def measure(rounds: int, peers: bool) -> list:
    """Return the rows of the table."""
    from benchmarks.measure import Row, number_printed_by, python

    ratio = statistics.median(number_printed_by(python(Path(__file__))) for _ in range(min(rounds, 3)))
    name = "step of a small transformer with EMA of its weights"
    return [Row(name, f"{(ratio - 1) * 100:.2f} % of a step", ratio, f"{BUDGET:.2f}×", ratio <= BUDGET)]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    print(f"{run(int(sys.argv[1]) if len(sys.argv) > 1 else 12):.5f}")
