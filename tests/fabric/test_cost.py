"""What a step of a hand-written loop calls of ours; its time is measured in benchmarks."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

import taskloom
from taskloom.fabric import Fabric

PACKAGE = str(Path(taskloom.__file__).parent)
STEPS = 10


def test_a_step_calls_what_is_listed_here():
    fabric = Fabric(accelerator="cpu")
    layer = nn.Linear(2, 1)
    module, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    batches = fabric.setup_dataloaders([torch.randn(4, 2) for _ in range(STEPS)])
    called: list[str] = []

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            called.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        for batch in batches:
            optimizer.zero_grad()
            fabric.backward(module(batch).mean())
            optimizer.step()
    finally:
        sys.setprofile(None)
    per_step = {name: count / STEPS for name, count in Counter(called).items() if count >= STEPS}
    # So that whoever adds a call to every step does so knowingly.
    assert per_step == {"zero_grad": 1, "forward": 1, "backward": 2, "step": 2}
