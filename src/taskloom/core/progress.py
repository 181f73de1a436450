"""The only counters. What is checkpointed, what every logger uses as x, and what every trigger compares against.

One counter for "steps" that means something else with two optimizers or with accumulation is what users of the peers
trip over (Lightning issues 17958 and 13752), so each thing that can be counted has a name of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from taskloom.core.errors import explain


@dataclass
class Progress:
    """How far training has come.

    Attributes:
        epochs: completed epochs.
        batches_in_epoch: training batches consumed in the current epoch; with `epochs` the position in the data.
        micro_batches: training batches consumed in all (`training_step` calls that were not repeated).
        steps: optimizer steps, in manual optimisation the batches in which at least one optimizer stepped. The x of
            every logger.
        optimizer_steps: steps of each optimizer by its name.
        samples: samples consumed, where the batch shows how many it holds.
        tokens: tokens consumed, where the task says so (`TaskModule.num_tokens`).
        skipped_batches: batches whose step returned `Skip`, or whose loss was not finite and was dropped.
        skipped_steps: optimizer steps that were not taken: an fp16 overflow, or a window dropped by policy.
        seconds: time spent in the training loop, over all resumes.
    """

    epochs: int = 0
    batches_in_epoch: int = 0
    micro_batches: int = 0
    steps: int = 0
    optimizer_steps: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    tokens: int = 0
    skipped_batches: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, object]:
        """Return the counters as plain data."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the counters.

        Raises:
            ValueError: a counter is missing or unknown, which means the state was written by something else.
        """
        names = {each.name for each in fields(self)}
        if set(state) != names:
            raise ValueError(
                explain(
                    "These are not the counters of a run",
                    got=sorted(set(state) ^ names),
                    why="each of these names is missing or unknown",
                )
            )
        for name, value in state.items():
            setattr(self, name, dict(value) if isinstance(value, Mapping) else value)
