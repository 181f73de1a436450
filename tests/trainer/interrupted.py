"""A training that tells when it is in the middle of a batch, for tests that interrupt it: FOLDER [stubborn]."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from loop.tiny import Line, loader

from taskloom import CheckpointPolicy, Trainer


class Slow(Line):
    """Waits within a batch until it is interrupted, then finishes the step; a stubborn one never does."""

    stubborn = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 5:
            print("waiting", flush=True)
            while not self.trainer.interrupt_requested:
                time.sleep(0.001)
            print("held back", flush=True)
            while self.stubborn:
                time.sleep(0.001)
        return loss


if __name__ == "__main__":
    task = Slow()
    task.stubborn = sys.argv[2:] == ["stubborn"]
    Trainer(
        accelerator="cpu",
        max_epochs=100,
        run_dir=sys.argv[1],
        progress="plain",
        checkpoint=CheckpointPolicy(every="100 epochs", fsync=False),
    ).fit(task, loader())
