"""A training whose run lies on an S3 server, and that kills itself in the middle of what it changes there.

As a script: URL OPTIONS LOG_ROOT CHANGES, the options in JSON; it dies (SIGKILL) after that many changes of the store.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from loop.tiny import Line, samples
from torch import nn
from torch.utils.data import DataLoader

from taskloom import CheckpointPolicy, RunFolder, Trainer

CHANGES = {"put_object", "delete_object", "copy_object", "upload_part", "complete_multipart_upload"}


class Noisy(Line):
    """With dropout and momentum, so that a resume that is not exact shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def train(root: Any, log_root: Any, options: dict[str, Any] | None, ckpt_path: str | None) -> Any:
    trainer = Trainer(
        accelerator="cpu",
        seed=1,
        max_epochs=2,
        run_dir=RunFolder(root, storage_options=options, log_root=log_root),
        progress=False,
        logger=["csv", "jsonl"],
        log_every_n_steps=1,
        checkpoint=CheckpointPolicy(every="2 steps", keep_last=2, fsync=False),
    )
    task = Noisy()
    generator = torch.Generator().manual_seed(3)
    result = trainer.fit(
        task, DataLoader(samples(8), batch_size=2, shuffle=True, generator=generator), ckpt_path=ckpt_path
    )
    return task, result


def die_after(changes: int) -> None:
    import s3fs

    call = s3fs.S3FileSystem._call_s3
    done = 0

    async def counted(self: Any, method: Any, *arguments: Any, **keywords: Any) -> Any:
        nonlocal done
        if method in CHANGES:
            if done == changes:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
        return await call(self, method, *arguments, **keywords)

    s3fs.S3FileSystem._call_s3 = counted


if __name__ == "__main__":
    url, options_text, log_root, changes = sys.argv[1:]
    die_after(int(changes))
    train(url, log_root, json.loads(options_text), "last" if Path(log_root).name != "machine-0" else None)
