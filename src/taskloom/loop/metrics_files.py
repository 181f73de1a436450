"""What a run measured, per split, as a table and as JSON files; the files and their names are those of the HF Trainer.

`train_results.json` and its like hold raw numbers, `all_results.json` those of every split that was saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from taskloom.checkpoint.files import replace_json
from taskloom.checkpoint.folder import read_json
from taskloom.checkpoint.place import Place
from taskloom.core.errors import explain

if TYPE_CHECKING:
    from taskloom.loop.facts import Facts

COMBINED = "all"
SPLITS = ("train", "validate", "test")


class Results:
    """The metrics of the last fit, validation and test of a Trainer, by split."""

    def __init__(self) -> None:
        self.by_split: dict[str, dict[str, float]] = {}

    def record(self, trainer: Facts) -> None:
        """Remember what the stage that has just ended measured; a fit both trains and validates."""
        run, stage = trainer.parts.run, trainer.state.stage
        if run is None or stage not in ("fit", "validate", "test"):
            return
        progress, values = trainer.progress, run.metrics.callback_metrics
        at: dict[str, float] = {"epoch": progress.epochs, "step": progress.steps}
        if stage != "fit":
            self.by_split[stage] = {**at, **values}
            return
        evaluated = run.metrics.names_of("validate")
        seconds, fit = progress.seconds, trainer.parts.fit
        train = {name: value for name, value in values.items() if name not in evaluated}
        if fit is not None and not math.isnan(fit.mean_training_loss):
            train["train_loss"] = fit.mean_training_loss
        train.update(train_runtime=seconds, train_samples=progress.samples)
        if seconds > 0:
            train["train_samples_per_second"] = progress.samples / seconds
            train["train_steps_per_second"] = progress.steps / seconds
        self.by_split["train"] = {**at, **train}
        if evaluated:
            self.by_split["validate"] = {**at, **{name: values[name] for name in values if name in evaluated}}

    def of(self, split: str, metrics: Mapping[str, float] | None) -> dict[str, float]:
        """Return the metrics of a split, `metrics` where they are given.

        Raises:
            ValueError: there is no such split.
            RuntimeError: nothing was measured for it.
        """
        if split not in (*SPLITS, COMBINED):
            raise ValueError(
                explain("Metrics have no such split", got=split, fix="use 'train', 'validate', 'test' or 'all'")
            )
        if metrics is not None:
            return dict(metrics)
        if split == COMBINED and self.by_split:
            return {name: value for each in self.by_split.values() for name, value in each.items()}
        if split not in self.by_split:
            stage = "fit" if split in ("train", COMBINED) else split
            raise RuntimeError(
                explain(
                    f"There are no metrics of {split!r} yet", fix=f"call trainer.{stage}(...) first, or pass metrics"
                )
            )
        return dict(self.by_split[split])


def write_results(folder: Place, split: str, metrics: Mapping[str, float], *, combined: bool) -> None:
    """Write the file of a split, replaced as a whole,; see `Trainer.save_metrics`."""
    plain = {name: _number(value) for name, value in metrics.items()}
    path = folder / f"{split}_results.json"
    every = folder / f"{COMBINED}_results.json"
    before = read_json(every) if combined or split == COMBINED else {}
    if split != COMBINED:
        replace_json(path, plain, fsync=False)
    if combined or split == COMBINED:
        replace_json(every, {**before, **plain}, fsync=False)


def render_results(split: str, metrics: Mapping[str, float]) -> str:
    """Return a table: names in order, floats with four decimals, times as hours, minutes and seconds."""
    shown = {name: _shown(name, value) for name, value in sorted(metrics.items())}
    names = max((len(name) for name in shown), default=0)
    values = max((len(value) for value in shown.values()), default=0)
    lines = [f"  {name:<{names}} = {value:>{values}}" for name, value in shown.items()]
    return "\n".join([f"***** {split} metrics *****", *lines])


def _shown(name: str, value: float) -> str:
    if name.endswith("_runtime") and math.isfinite(value):
        return str(timedelta(milliseconds=round(value * 100) * 10)).removesuffix("0000")
    return f"{value:g}" if float(value).is_integer() else f"{value:.4f}"


def _number(value: Any) -> Any:
    """Return a number as JSON has it; what is not finite becomes a text."""
    number = value if isinstance(value, (int, float)) else float(value)
    return number if math.isfinite(number) else str(number)
