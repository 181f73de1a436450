"""Small typed objects for what is rarer than a `Trainer` parameter.

Each parameter that has one accepts a plain value for the usual case and the object for the rest, so the constructor of
the `Trainer` stays short and every default can be read here. All of them check themselves when they are made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from taskloom.core.errors import explain, nearest
from taskloom.core.interval import Interval, IntervalLike

SkipPolicy = Literal["drop_and_reweight", "skip_all", "raise"]
_SKIP_POLICIES = ("drop_and_reweight", "skip_all", "raise")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            explain(
                f"{name} has no choice {value!r}",
                fix=f"use one of {', '.join(map(repr, choices))}.{nearest(value, choices)}",
            )
        )


@dataclass(frozen=True)
class GradientClipping:
    """How gradients are bounded between the backward pass and the optimizer step.

    Args:
        max_norm: scale the gradients of an optimizer's parameters so that their joint norm is at most this.
        max_value: clamp every gradient element to `[-max_value, max_value]` instead.
        norm_type: p of the norm; `inf` for the largest element.
        error_if_nonfinite: raise `NonFiniteError` when the norm is NaN or infinite, before any gradient is changed.
            Reads one number from the device per step.
        log_norm: log the norm before clipping as `grad_norm`.

    Raises:
        ValueError: both bounds are given, or one is not positive.
    """

    max_norm: float | None = None
    max_value: float | None = None
    norm_type: float = 2.0
    error_if_nonfinite: bool = False
    log_norm: bool = False

    def __post_init__(self) -> None:
        if self.max_norm is not None and self.max_value is not None:
            raise ValueError(
                explain(
                    "Gradients are clipped by norm or by value, not both", got=self, fix="pass max_norm or max_value"
                )
            )
        for name in ("max_norm", "max_value", "norm_type"):
            bound = vars(self)[name]
            if bound is not None and not bound > 0:
                raise ValueError(
                    explain(
                        f"{name} must be above zero",
                        got=bound,
                        fix="leave gradient_clip_val out to switch clipping off",
                    )
                )

    @classmethod
    def of(cls, value: float | GradientClipping | None) -> GradientClipping:
        """Read the `gradient_clip_val` of a `Trainer`: a number is a largest norm, `None` switches clipping off."""
        if isinstance(value, GradientClipping):
            return value
        return cls(max_norm=None if value is None else float(value))

    @property
    def active(self) -> bool:
        """Whether anything is clipped, checked or logged."""
        return self.max_norm is not None or self.max_value is not None or self.error_if_nonfinite or self.log_norm


@dataclass(frozen=True)
class Accumulation:
    """The window of micro-batches that one optimizer step learns from.

    Args:
        batches: micro-batches per window; a mapping `{epoch: batches}` changes it from that epoch on.
        flush_last: step on a short last window of an epoch, weighted by what it really holds. If False its batches are
            dropped.
        on_skip: what a step that returns `Skip` does to its window. `drop_and_reweight` leaves the micro-batch out and
            divides by the weight of the others, `skip_all` drops the whole window, `raise` stops.
        on_nonfinite: the same for a loss that is NaN or infinite. `raise` is noticed at once on a CPU and at the next
            flush elsewhere, because asking an accelerator for a number every step would stall it.
        max_consecutive_skips: stop with an error after this many dropped batches in a row.
    """

    batches: int | Mapping[int, int] = 1
    flush_last: bool = True
    on_skip: SkipPolicy = "drop_and_reweight"
    on_nonfinite: SkipPolicy = "raise"
    max_consecutive_skips: int = 100

    def __post_init__(self) -> None:
        _check_choice("on_skip", self.on_skip, _SKIP_POLICIES)
        _check_choice("on_nonfinite", self.on_nonfinite, _SKIP_POLICIES)
        schedule = self.batches if isinstance(self.batches, Mapping) else {0: self.batches}
        for epoch, batches in schedule.items():
            if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1 or epoch < 0:
                raise ValueError(
                    explain(
                        "accumulate_grad_batches takes whole numbers of at least 1",
                        got=self.batches,
                        fix="pass 4, or {0: 1, 5: 4} to change it from epoch 5 on",
                    )
                )
        if self.max_consecutive_skips < 1:
            raise ValueError(explain("max_consecutive_skips must be at least 1", got=self.max_consecutive_skips))

    @classmethod
    def of(cls, value: int | Mapping[int, int] | Accumulation) -> Accumulation:
        """Read the `accumulate_grad_batches` of a `Trainer`."""
        return value if isinstance(value, Accumulation) else cls(batches=value)

    def at_epoch(self, epoch: int) -> int:
        """Return the micro-batches per window that `epoch` (counted from 0) starts with."""
        if not isinstance(self.batches, Mapping):
            return self.batches
        begun = [start for start in self.batches if start <= epoch]
        return self.batches[max(begun)] if begun else 1


@dataclass(frozen=True)
class ValidationPolicy:
    """When validation runs during `fit`, and how evaluation is run.

    Args:
        every: interval between validations; `None` never validates.
        start_after: no validation before this much training.
        on_start: validate once, whole, before the first step.
        inference_mode: evaluate under `torch.inference_mode` (faster) rather than `torch.no_grad`.
        precision: evaluate in another precision than training (`bf16-mixed`, `16-mixed`, ...); `None` for the same.
    """

    every: IntervalLike | None = "1 epoch"
    start_after: IntervalLike | None = None
    on_start: bool = False
    inference_mode: bool = True
    precision: str | None = None

    def __post_init__(self) -> None:
        for value in (self.every, self.start_after):
            if value is not None:
                Interval.parse(value)

    @classmethod
    def of(cls, value: IntervalLike | ValidationPolicy | None) -> ValidationPolicy:
        """Read the `val_check_interval` of a `Trainer`."""
        return value if isinstance(value, ValidationPolicy) else cls(every=value)


@dataclass(frozen=True)
class LimitBatches:
    """How much of each loader is used: an int counts batches, a float is the part of the loader, `None` is all of it.

    Args:
        train: of the training loader.
        validate: of every validation loader; 0 switches validation off.
        test: of every test loader.
        predict: of every prediction loader.
        overfit: train on this much of the training loader, the same batches in the same order each epoch, and validate
            on the same batches, to see whether a model can learn at all.
    """

    train: int | float | None = None
    validate: int | float | None = None
    test: int | float | None = None
    predict: int | float | None = None
    overfit: int | float | None = None

    def __post_init__(self) -> None:
        for stage in ("train", "validate", "test", "predict", "overfit"):
            limit = vars(self)[stage]
            if limit is None:
                continue
            if (
                isinstance(limit, bool)
                or not isinstance(limit, (int, float))
                or limit < 0
                or (isinstance(limit, float) and limit > 1)
            ):
                raise ValueError(
                    explain(
                        f"The limit of {stage!r} is a number of batches (int) or a part of the loader (float from 0 "
                        f"to 1)",
                        got=limit,
                    )
                )

    @classmethod
    def of(cls, value: int | float | Mapping[str, int | float] | LimitBatches | None) -> LimitBatches:
        """Read the `limit_batches` of a `Trainer`; a single number limits every stage."""
        if isinstance(value, LimitBatches):
            return value
        if isinstance(value, Mapping):
            names = ("train", "validate", "test", "predict", "overfit")
            for name in value:
                if name not in names:
                    raise ValueError(
                        explain(
                            f"limit_batches has no stage {name!r}", fix=f"use {', '.join(names)}.{nearest(name, names)}"
                        )
                    )
            return cls(**value)
        return cls(train=value, validate=value, test=value, predict=value)

    @staticmethod
    def apply(limit: int | float | None, length: float, stage: str) -> float:
        """Return how many batches of a loader of `length` (`inf` when unknown) a limit leaves.

        Raises:
            ValueError: the part is of a loader without a length, or so small that it is no batch.
        """
        if limit is None:
            return length
        if isinstance(limit, int):
            return min(limit, length)
        if math.isinf(length):
            if limit == 1.0:
                return length
            raise ValueError(
                explain(
                    f"The {stage} loader has no length, so a part of it cannot be counted",
                    got=limit,
                    fix=f"limit_batches={{'{stage}': 100}} with a whole number of batches",
                )
            )
        # Rounded first, because 0.29 of 100 is 28.999999999999996 in floats.
        batches = math.floor(round(length * limit, 6))
        if limit and not batches:
            raise ValueError(
                explain(
                    f"The limit of the {stage} loader leaves no batch of it",
                    got=limit,
                    why=f"the loader has {length:g}",
                    fix=f"limit_batches={{'{stage}': 1}} with a whole number of batches",
                )
            )
        return batches


@dataclass(frozen=True)
class Between:
    """Bounds of the length of training: `should_stop` has no effect before `min`, and training ends at `max`.

    Args:
        min: fewest epochs or steps.
        max: most; `None` for no bound of this kind.
    """

    min: float = 0
    max: float | None = None

    def __post_init__(self) -> None:
        if self.min < 0 or (self.max is not None and (self.max < 0 or self.max < self.min)):
            raise ValueError(explain("Bounds of training must satisfy 0 <= min <= max", got=self))

    @classmethod
    def of(cls, value: float | Between | None) -> Between:
        """Read `max_epochs` or `max_steps` of a `Trainer`; -1 is Lightning's spelling of no bound."""
        if isinstance(value, Between):
            return value
        return cls(max=math.inf if value == -1 else value)


@dataclass(frozen=True)
class LogPolicy:
    """What reaches the loggers during training.

    Args:
        every: optimizer steps between flushes; a text such as `"1%"` is a part of the run.
        first_step: flush after the first step as well.
        nan_filter: leave values that are NaN or infinite out of what loggers get; callbacks still see them.
        hyperparameters: send `hparams` of the task and the data to the loggers at the start.
    """

    every: int | str = 50
    first_step: bool = False
    nan_filter: bool = False
    hyperparameters: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, (int, str)):
            raise TypeError(
                explain("log_every_n_steps is a whole number or a text", got=self.every, fix="pass 50, or '1%'")
            )
        if isinstance(self.every, int) and self.every < 1:
            raise ValueError(
                explain("log_every_n_steps must be at least 1", got=self.every, fix="use logger=False to log nothing")
            )
        self.interval()

    def interval(self) -> Interval:
        """Return the interval between flushes, in steps or as a part of the run."""
        return Interval(self.every, "steps") if isinstance(self.every, int) else Interval.parse(self.every)

    @classmethod
    def of(cls, value: int | str | LogPolicy) -> LogPolicy:
        """Read the `log_every_n_steps` of a `Trainer`."""
        return value if isinstance(value, LogPolicy) else cls(every=value)


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    Args:
        root: folder of all runs, or the URL of one in a store (`s3://bucket/runs`).
        name: folder of this run below `root`; by default the task's class name and the time of the start.
        project: name that tracking services group runs by.
        overwrite: allow a `name` that exists already. The checkpoints there are set aside, not deleted.
        storage_options: for the store of a URL, such as `{"endpoint_url": "http://localhost:9000"}`. Keys are better
            left to the environment or to fsspec's configuration, because configurations are saved with runs.
        log_root: where loggers write on this machine when `root` is a URL; the files are copied to the run from there.
    """

    root: str | Path = "runs"
    name: str | None = None
    project: str | None = None
    overwrite: bool = False
    storage_options: dict[str, Any] | None = None
    log_root: str | Path = "runs"

    @classmethod
    def of(cls, value: str | Path | RunFolder) -> RunFolder:
        """Read the `run_dir` of a `Trainer`."""
        return value if isinstance(value, RunFolder) else cls(root=value)


@dataclass(frozen=True)
class DebugOptions:
    """What to watch while looking for a mistake; slow, so off by default.

    Args:
        detect_anomaly: run under `torch.autograd.detect_anomaly`, which names the forward operation whose gradient is
            NaN.
        check_gradients: raise `NonFiniteError` naming the first parameter whose gradient is not finite.
    """

    detect_anomaly: bool = False
    check_gradients: bool = False

    @classmethod
    def of(cls, value: bool | DebugOptions) -> DebugOptions:
        """Read the `debug` of a `Trainer`; True switches everything on."""
        if isinstance(value, DebugOptions):
            return value
        return cls(detect_anomaly=value, check_gradients=value)


@dataclass(frozen=True)
class Determinism:
    """Whether the same program computes the same bits again.

    Args:
        algorithms: let torch use deterministic algorithms only, and raise where there is none; `"warn"` warns there.
        benchmark: let cuDNN try its algorithms for every new shape and take the fastest, which may be another one each
            time; None is False with deterministic algorithms, and leaves torch's setting alone without.

    Raises:
        ValueError: `algorithms` is something else.
    """

    algorithms: bool | Literal["warn"] = True
    benchmark: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.algorithms, bool) and self.algorithms != "warn":
            raise ValueError(
                explain(
                    "deterministic is True, False or 'warn'",
                    got=self.algorithms,
                    fix="deterministic='warn' goes on where torch has no deterministic algorithm",
                )
            )

    @classmethod
    def of(cls, value: bool | Literal["warn"] | Determinism) -> Determinism:
        """Read the `deterministic` of a `Trainer`."""
        return value if isinstance(value, Determinism) else cls(algorithms=value)
