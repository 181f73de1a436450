"""The lines at the start and the end of a run: what was chosen and why, where everything is, what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import SupportsFloat

from taskloom.report.text import format_duration, format_metrics, format_rate

_LABEL_WIDTH = 12


def _labelled(label: str, text: str) -> str:
    return f"{label.ljust(_LABEL_WIDTH)}{text}"


def batch_line(batch_size: int | None, accumulation: int, data_parallel: int) -> str:
    """Return the arithmetic of a batch, `32 × accumulation 4 × data-parallel 2 = 256 samples per step`.

    Args:
        batch_size: samples per device and micro-batch; None when the loader does not say.
        accumulation: micro-batches per optimizer step.
        data_parallel: processes that read different data.
    """
    size = "unknown size" if batch_size is None else str(batch_size)
    factors = f"{size} × accumulation {accumulation} × data-parallel {data_parallel}"
    if batch_size is None:
        return f"{factors} per step"
    return f"{factors} = {batch_size * accumulation * data_parallel} samples per step"


def start_lines(
    *,
    device: str,
    precision: str,
    strategy: str,
    batch: str = "",
    chosen: Mapping[str, str] | None = None,
    run_folder: str | Path | None = None,
    resumed_from: str | Path | None = None,
) -> str:
    """Return the lines printed when a run begins.

    Args:
        device: its name, such as `cpu (AMD EPYC)`.
        precision: the name of the precision and its dtypes.
        strategy: its name and the number of processes.
        batch: `batch_line(...)`; left out in evaluation.
        chosen: what was chosen automatically, to why: `{"accelerator=cpu": "this machine has no GPU"}`.
        run_folder: where the run writes.
        resumed_from: the checkpoint it continues.
    """
    lines = [_labelled("Device", device), _labelled("Precision", precision), _labelled("Strategy", strategy)]
    if batch:
        lines.append(_labelled("Batch", batch))
    for choice, reason in (chosen or {}).items():
        lines.append(_labelled("Chosen", f"{choice}, because {reason}"))
    if resumed_from is not None:
        lines.append(_labelled("Resumed", f"from {resumed_from}"))
    if run_folder is not None:
        lines.append(_labelled("Run folder", str(run_folder)))
    return "\n".join(lines)


def closing_lines(
    *,
    status: str,
    steps: int,
    epochs: int,
    seconds: float,
    steps_this_run: int | None = None,
    reason: str = "",
    aside: Mapping[str, float] | None = None,
    metrics: Mapping[str, SupportsFloat] | None = None,
    run_folder: str | Path | None = None,
    best: str | Path | None = None,
    best_score: str = "",
    last: str | Path | None = None,
    logs: Sequence[str] = (),
    next_commands: Sequence[str] = (),
) -> str:
    """Return the lines printed when `fit` ends, however it ends.

    Args:
        status: finished, stopped, interrupted or failed.
        steps: optimizer steps in all.
        epochs: completed epochs in all.
        seconds: this run took.
        steps_this_run: optimizer steps since a resume; all of them by default.
        reason: why it stopped.
        aside: seconds that were not spent on training batches, by what they were spent on.
        metrics: the last values.
        run_folder: where the run wrote.
        best: the best checkpoint.
        best_score: what makes it the best, such as `val/loss 0.12`.
        last: the newest checkpoint.
        logs: `Logger.location` of each logger.
        next_commands: what to type next, see `next_commands`.
    """
    own_steps = steps if steps_this_run is None else steps_this_run
    pace = format_rate(own_steps / seconds, "steps", "step") if seconds > 0 else ""
    head = f"{_plural(steps, 'step')}, {_plural(epochs, 'epoch')} in {format_duration(seconds)}"
    lines = [_labelled(status.capitalize(), f"{head} ({pace})" if pace else head)]
    if reason:
        lines.append(_labelled("Because", reason))
    if aside:
        spent = (f"{name} {format_duration(taken)}" for name, taken in aside.items())
        lines.append(_labelled("Aside", ", ".join(spent)))
    if metrics:
        lines.append(_labelled("Metrics", format_metrics(metrics)))
    if run_folder is not None:
        lines.append(_labelled("Run folder", str(run_folder)))
    if best is not None:
        lines.append(_labelled("Best", f"{best}{f' ({best_score})' if best_score else ''}"))
    if last is not None and last != best:
        lines.append(_labelled("Last", str(last)))
    lines += [_labelled("Logs" if index == 0 else "", log) for index, log in enumerate(filter(None, logs))]
    lines += [_labelled("Next" if index == 0 else "", command) for index, command in enumerate(next_commands)]
    return "\n".join(lines)


def next_commands(
    *,
    config: str | Path | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    tests: bool = False,
    viewers: Sequence[str] = (),
) -> list[str]:
    """Return what to type after a run.

    Args:
        config: the run's configuration, when it was started from the command line.
        checkpoint: the best one, or where there is none the last.
        resume: the run did not reach its end, so the first thing is to go on.
        tests: the task can be tested.
        viewers: `Logger.viewer` of each logger.
    """
    commands = []
    if checkpoint is not None and (resume or tests):
        verb = "fit" if resume else "test"
        if config is not None:
            commands.append(f"task {verb} --config {quote(str(config))} --ckpt_path {quote(str(checkpoint))}")
        else:
            commands.append(f"trainer.{verb}(task, ckpt_path={str(checkpoint)!r})")
    return [*commands, *filter(None, viewers)]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
