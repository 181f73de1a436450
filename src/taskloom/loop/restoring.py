"""Bringing a run back to where a checkpoint was written, as far as a `RestorePolicy` says.

Everything is compared before anything is changed, so that all of what does not fit is told at once and a task that the
checkpoint is not for stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from warnings import warn

from torch import Tensor

from taskloom.checkpoint import CheckpointKeeper, CheckpointReader, open_checkpoint
from taskloom.checkpoint.restore import PARTS, RestorePolicy, RestoreReport, names_of
from taskloom.checkpoint.settings import apply_settings
from taskloom.checkpoint.setup import compare_setups
from taskloom.checkpoint.weights import Weights, overlapping, raise_all
from taskloom.core.errors import ABSENT, CheckpointError, TaskloomWarning, explain
from taskloom.data import NamedLoader
from taskloom.loop.folder import Found
from taskloom.loop.further import load_further
from taskloom.loop.optimization import Optimization
from taskloom.loop.position import restore_generators
from taskloom.loop.run import Run
from taskloom.loop.saving import Saver, Scheduling, keyed, owner_of
from taskloom.loop.setup import setup_of
from taskloom.metrics import restore_metric_states
from taskloom.optim.fitting import Fit, fit_optimizer
from taskloom.optim.groups import parameter_names


@contextmanager
def opened(found: Found | None) -> Generator[CheckpointReader | None, None, None]:
    """Open a checkpoint, verified once, for the length of a `with` block; None for None."""
    if found is None:
        yield None
        return
    reader = open_checkpoint(found.path, verify=not found.verified)
    try:
        yield reader
    finally:
        reader.close()


@dataclass
class Restoration:
    """A checkpoint, what is to be taken from it, and what was.

    Args:
        reader: of the checkpoint.
        policy: what is restored.

    Attributes:
        report: what was restored and what was not, once it was.
    """

    reader: CheckpointReader
    policy: RestorePolicy
    report: RestoreReport = field(default_factory=RestoreReport)
    _problems: list[str] = field(default_factory=list)
    _mismatches: list[str] = field(default_factory=list)
    _warnings: list[str] = field(default_factory=list)

    @property
    def continues(self) -> bool:
        """Whether a training goes on, rather than that a new one begins from what is restored."""
        return self.policy.continues

    def takes(self, part: str) -> bool:
        """Whether a part is restored."""
        return part in self.policy.parts

    def mismatch(self, name: str, what: str, fix: str, *, got: object = ABSENT) -> None:
        """Note that something is only in the checkpoint, or only in the run: an error unless the policy allows it."""
        if self.policy.missing == "error":
            allowed = f"restore.ignore={name!r}, or restore.missing='warn' for whatever is there"
            self._problems.append(explain(what, got=got, fix=f"{fix}, or {allowed}"))
        else:
            self._mismatches.append(what)
            self.report.changes.append(("Without", what))

    def problem(self, *texts: str) -> None:
        """Note what makes it impossible to restore."""
        self._problems.extend(texts)

    def warning(self, text: str) -> None:
        """Note what the user should know of, if nothing makes it impossible to restore."""
        self._warnings.append(text)

    def settle(self) -> None:
        """Raise the problems there are, and warn of mismatches.

        Raises:
            CheckpointError: with every problem.
        """
        raise_all(list(dict.fromkeys(self._problems)), f"{self.reader.path} does not fit this run")
        if self._mismatches and self.policy.missing == "warn":
            text = explain(
                f"{self.reader.path} and this run differ: {'; '.join(self._mismatches)}",
                why="restore.missing is 'warn'",
            )
            self._warnings.append(text)
        for text in self._warnings:
            warn(text, TaskloomWarning, stacklevel=2)


def restoration_of(reader: CheckpointReader | None, policy: RestorePolicy | None, *, named: bool) -> Restoration | None:
    """Pair a checkpoint with what is to be taken from it.

    Args:
        reader: of the checkpoint, None where there is none.
        policy: what is restored; everything by default.
        named: a checkpoint was asked for, though there may be none yet (`ckpt_path="auto"`).

    Raises:
        ValueError: there is a policy and nothing was asked for.
    """
    if reader is not None:
        return Restoration(reader, policy or RestorePolicy())
    if policy is not None and not named:
        raise ValueError(
            explain("restore says what to take from a checkpoint, and there is none", got=policy, fix="pass ckpt_path")
        )
    return None


def restore_weights(run: Run, restoration: Restoration) -> None:
    """Hand back what the task and the callbacks had added, then load parameters and buffers, for an evaluation."""
    _hand_back(run, restoration)
    weights = _prepare_weights(run, restoration)
    restoration.problem(*weights.names.unused(weights.stored, weights.targets))
    restoration.settle()
    run.strategy.load_model(run.module, weights.tensors(), strict=False)
    load_further(run, restoration.reader)


def restore_fit(
    run: Run,
    restoration: Restoration,
    optimization: Optimization,
    saver: Saver,
    keepers: Sequence[CheckpointKeeper],
    loader: NamedLoader,
) -> None:
    """Restore everything that the policy asks for: weights, moments, schedules, counters, callbacks, generators.

    Raises:
        CheckpointError: the checkpoint lacks what is asked for, or was written by a run of another shape; lists all
            that does not fit.
    """
    _require_training_state(restoration)
    _FitRestore(run, restoration, optimization, saver, keepers).restore(loader)


class _FitRestore:
    """One restore of a fit: everything is compared, and only then changed."""

    def __init__(
        self,
        run: Run,
        restoration: Restoration,
        optimization: Optimization,
        saver: Saver,
        keepers: Sequence[CheckpointKeeper],
    ) -> None:
        self._run, self._restoration, self._optimization = run, restoration, optimization
        self._saver, self._keepers = saver, keepers
        policy, self._reader = restoration.policy, restoration.reader
        self._state: dict[str, Any] = dict(self._reader.state)
        if policy.settings:
            changed = ("optimizers", "schedulers", "precision", "progress", "callbacks")
            self._state.update({key: copy.deepcopy(self._state[key]) for key in changed if key in self._state})
        self._fits: dict[str, Fit] = {}
        self._schedules: list[int] = []

    def restore(self, loader: NamedLoader) -> None:
        """Compare, then change."""
        run, restoration = self._run, self._restoration
        policy = restoration.policy
        _hand_back(run, restoration)
        weights = _prepare_weights(run, restoration) if restoration.takes("model") else None
        self._compare_schedules()
        self._compare_optimizers(weights)
        self._compare_scaler()
        self._compare_callbacks()
        self._compare_data()
        self._check_patterns(weights)
        restoration.problem(*apply_settings(self._state, policy.settings, restoration.report))
        if restoration.continues:
            self._check_setup(loader)
        restoration.settle()
        if weights is not None:
            run.strategy.load_model(run.module, weights.tensors(), strict=False)
        if restoration.takes("callbacks"):
            load_further(run, restoration.reader)
        self._load_optimizers(weights)
        self._load_schedules()
        if restoration.takes("scaler"):
            run.strategy.precision.load_state_dict(self._state["precision"])
        self._load_loops()
        restoration.report.restored = names_of(policy.parts)
        restoration.report.left_out = names_of(frozenset(PARTS) - policy.parts)

    # Comparing --------------------------------------------------------------------------------------------------------

    def _compare_schedules(self) -> None:
        restoration, configs = self._restoration, self._optimization.schedulers.configs
        if not restoration.takes("schedulers"):
            return
        saved, fix = self._state["schedulers"], "return the schedulers of the run that wrote it"
        for number in range(max(len(saved), len(configs))):
            then = saved[number]["class"] if number < len(saved) else "none"
            now = type(configs[number].scheduler).__name__ if number < len(configs) else "none"
            if restoration.policy.names.ignores(f"schedulers.{number}"):
                continue
            if then == now:
                self._schedules.append(number)
            else:
                what = f"Scheduler {number} was {then} and is {now} now"
                restoration.mismatch("schedulers", what, fix, got=[each["class"] for each in saved])

    def _rescheduled(self, name: str) -> bool:
        """Whether an optimizer has a schedule that is not the one it was saved with, or lost one."""
        configs, saved = self._optimization.schedulers.configs, self._state["schedulers"]
        then = {number for number, entry in enumerate(saved) if entry["optimizer"] in (name, None)}
        now = {
            number
            for number, config in enumerate(configs)
            if owner_of(config.scheduler, self._optimization) in (name, None)
        }
        return bool((then | now) - {*self._schedules})

    def _compare_optimizers(self, weights: Weights | None) -> None:
        restoration, optimization = self._restoration, self._optimization
        if not restoration.takes("optimizer"):
            return
        names, saved = restoration.policy.names, self._state["optimizers"]
        own = dict(zip(optimization.names, optimization.optimizers, strict=True))
        only = [each for each in {**saved, **own} if (each in saved) != (each in own)]
        if any(not names.ignores(f"optimizer.{each}") for each in only):
            restoration.mismatch(
                "optimizer",
                "The checkpoint holds other optimizers: "
                f"{', '.join(sorted(saved)) or 'none'} for {', '.join(sorted(own)) or 'none'}",
                "return the optimizers that wrote it from configure_optimizers",
            )
        parameters = parameter_names(run_module(self._run))
        known = {*own} & {*saved}
        for name in (each for each in own if each in known):
            fit = fit_optimizer(
                name,
                own[name],
                parameters,
                saved[name],
                now=names.now,
                ignores=lambda each: names.ignores(each, f"optimizer.{each}"),
                keeps_schedule=self._rescheduled(name),
            )
            if fit.problems and restoration.policy.missing == "error":
                restoration.problem(*fit.problems)
            self._fits[name] = fit
            self._drop_reshaped(fit, weights)
            restoration.report.note("Moments lost", (f"{each} of {name}" for each in fit.only_saved))
            restoration.report.note("New moments", (f"{each} of {name}" for each in fit.only_now))
            self._tell_rates(name, saved[name], fit)
        self._state["optimizers"] = {name: fit.state for name, fit in self._fits.items()}

    def _drop_reshaped(self, fit: Fit, weights: Weights | None) -> None:
        """Let a resized parameter begin with new moments where one of them does not have its shape."""
        for name in weights.resized if weights is not None else ():
            slots = [key for key in fit.keys if key.rpartition(".")[0] == name]
            shapes = [self._reader.dtype_and_shape("optimizer", fit.keys[key])[1] for key in slots]
            if weights is not None and any(shape not in ((), weights.resized[name][0]) for shape in shapes):
                fit.state["parameters"].pop(name, None)
                fit.only_now.append(name)
                for key in slots:
                    del fit.keys[key]

    def _tell_rates(self, name: str, saved: dict[str, Any], fit: Fit) -> None:
        if not self._rescheduled(name):
            return
        before = [float(group["options"]["lr"]) for group in saved["groups"] if "lr" in group["options"]]
        now = [float(group["options"]["lr"]) for group in fit.state["groups"] if "lr" in group["options"]]
        if before != now:
            self._restoration.report.changes.append(
                ("New schedule", f"{name}.lr {', '.join(map(str, before))} to {', '.join(map(str, now))}")
            )

    def _compare_scaler(self) -> None:
        restoration, precision = self._restoration, self._run.strategy.precision
        if restoration.takes("scaler") and bool(self._state["precision"]) != bool(precision.state_dict()):
            had = "has a loss scale" if self._state["precision"] else "has no loss scale"
            restoration.mismatch(
                "scaler", f"The checkpoint {had}, unlike {precision.name}", "train in the precision it was saved in"
            )

    def _compare_callbacks(self) -> None:
        restoration, names = self._restoration, self._restoration.policy.names
        if not restoration.takes("callbacks"):
            return
        saved = {key for key, state in self._state["callbacks"].items() if state}
        own = keyed(self._run.trainer.active_callbacks)
        gone = [key for key in sorted(saved - {*own}) if not names.ignores(f"callbacks.{key}")]
        added = [key for key in own if key not in self._state["callbacks"] and own[key].state_dict()]
        if gone:
            listed = ", ".join(gone)
            restoration.mismatch(
                f"callbacks.{gone[0].partition('(')[0]}*",
                f"The checkpoint holds the state of callbacks that are not there: {listed}",
                "pass them to the Trainer, with the settings they had",
                got=sorted(own),
            )
        restoration.report.note("New callbacks", (f"{key} (begins anew)" for key in added))

    def _compare_data(self) -> None:
        restoration, saved = self._restoration, self._state.get("datamodule")
        if restoration.takes("data") and saved and self._run.datamodule is None:
            restoration.mismatch(
                "data",
                f"The checkpoint holds the state of a data module: {', '.join(map(str, saved))}",
                "pass the data module it was written with",
            )

    def _check_patterns(self, weights: Weights | None) -> None:
        optimization = self._optimization
        parameters = parameter_names(run_module(self._run)).values()
        further = [
            *(f"optimizer.{each}" for each in [*optimization.names, *self._reader.state.get("optimizers", ())]),
            *(f"optimizer.{each}" for each in [*parameters, *map(self._now, self._reader.model_names())]),
            *(f"callbacks.{each}" for each in [*self._state.get("callbacks", ()), *self._own_callbacks()]),
            *(f"schedulers.{number}" for number in range(len(self._state.get("schedulers", ())))),
        ]
        targets = weights.targets if weights is not None else list(parameters)
        self._restoration.problem(*self._restoration.policy.names.unused(self._reader.model_names(), targets, further))

    def _now(self, name: str) -> str:
        return self._restoration.policy.names.now(name)

    def _own_callbacks(self) -> Iterator[str]:
        yield from keyed(self._run.trainer.active_callbacks)

    def _check_setup(self, loader: NamedLoader) -> None:
        restoration, run = self._restoration, self._run
        check = restoration.policy.check
        if check == "off" or run.trainer.settings.dry:
            return
        data = run.datamodule.hparams if run.datamodule is not None else {}
        now = {**setup_of(run, loader), "task": dict(run.task.hparams), "data": dict(data)}
        saved = {
            **self._state.get("setup", {}),
            "task": self._state["hyper_parameters"],
            "data": self._state["data_hyper_parameters"],
        }
        changes = compare_setups(saved, now)
        restoration.report.note("Now", changes.bounds)
        if changes.matter and check == "error":
            restoration.problem(
                explain(
                    f"The settings of {self._reader.path} are other ones: {'; '.join(changes.matter)}",
                    why="restore.check is 'error'",
                    fix="use the settings it was trained with, or restore.check='warn'",
                )
            )
        elif changes.matter:
            text = explain(
                f"The settings are not those of {self._reader.path}: {'; '.join(changes.matter)}",
                why="the training goes on, and will not compute what it would have; values that a checkpoint holds, "
                "such as the optimizer's learning rate, are those of the checkpoint",
                fix="restore.set='optimizer.lr=...' changes those; restore.check='off' is silent, 'error' refuses",
            )
            restoration.warning(text)
            restoration.report.note("Other settings", changes.matter)

    # Changing ---------------------------------------------------------------------------------------------------------

    def _load_optimizers(self, weights: Weights | None) -> None:
        if not self._restoration.takes("optimizer"):
            return
        optimization = self._optimization
        own = dict(zip(optimization.names, optimization.optimizers, strict=True))
        known = {name: own[name] for name, fit in self._fits.items() if not fit.another_kind}
        state = {name: self._state["optimizers"][name] for name in known}
        keys = {now: stored for name in known for now, stored in self._fits[name].keys.items()}
        self._run.strategy.load_optimizers(self._run.module, known, state, self._moments(keys, weights))

    def _load_schedules(self) -> None:
        """Restore the schedules; one whose optimizer is new gives it the rates that it had come to."""
        schedulers = self._optimization.schedulers
        for number in self._schedules:
            saved, scheduler = self._state["schedulers"][number], schedulers.configs[number].scheduler
            scheduler.load_state_dict(saved["state"])
            schedulers.restore_seen(number, saved["seen"])
            fit = self._fits.get(owner_of(scheduler, self._optimization) or "")
            rates = saved["state"].get("_last_lr") if isinstance(saved["state"], dict) else None
            if isinstance(scheduler, Scheduling) and isinstance(rates, list) and (fit is None or fit.another_kind):
                for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=False):
                    group["lr"] = rate

    def _moments(self, keys: dict[str, str], weights: Weights | None) -> Iterator[tuple[str, Tensor]]:
        shapes = weights.resized if weights is not None else {}
        for name, stored in keys.items():
            tensor, parameter = self._reader.tensor("optimizer", stored), name.rpartition(".")[0]
            if parameter in shapes and tensor.ndim:
                yield name, overlapping(tensor, tensor.new_empty(shapes[parameter][1]), fill=0.0)
            else:
                yield name, tensor

    def _load_loops(self) -> None:
        run, restoration, state, reader = self._run, self._restoration, self._state, self._reader
        trainer, optimization = run.trainer, self._optimization
        if restoration.takes("callbacks"):
            for key, callback in keyed(trainer.active_callbacks).items():
                if key in state["callbacks"] and not restoration.policy.names.ignores(f"callbacks.{key}"):
                    callback.load_state_dict(state["callbacks"][key])
        if not restoration.continues:
            if restoration.takes("generators"):
                restore_generators(run, state["generators"])
            return
        trainer.progress.load_state_dict(state["progress"])
        taken = trainer.progress.optimizer_steps
        trainer.progress.optimizer_steps = {name: taken.get(name, 0) for name in optimization.names}
        restarts = restoration.policy.restarts_data
        anew = restarts and bool(trainer.progress.batches_in_epoch) and not state["position"]["epoch_read"]
        if anew:
            restoration.report.changes.append(("Data", "the epoch begins anew"))
        optimization.window.skipped = trainer.progress.skipped_batches
        if restoration.takes("checkpoints"):
            for keeper, kept in zip(self._keepers, _own_entries(self._keepers, state["keepers"]), strict=True):
                keeper.load_state_dict(kept, resumed_from=reader.path)
        if restoration.takes("data") and run.datamodule is not None and state["datamodule"]:
            run.datamodule.load_state_dict(state["datamodule"])
        self._saver.resume(state, restart=restarts)
        if restoration.takes("metrics"):
            metrics = reader.manifest.metrics
            run.metrics.callback_metrics.update({name: value for name, (value, _) in metrics.items()})
            run.metrics.measured_at.update({name: step for name, (_, step) in metrics.items()})
            if not anew:
                run.metrics.load_state_dict(state["metrics"])
                restore_metric_states(run.task, state["metric_objects"])
        if restoration.takes("generators"):
            restore_generators(run, state["generators"])


def _own_entries(keepers: Sequence[CheckpointKeeper], saved: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each keeper what the one with its metric had kept; of equal ones each has its own, in order.

    One whose metric nobody had takes what is left, of which it forgets the values, and one that is new begins empty.
    """
    left = list(saved)
    found: dict[int, dict[str, Any]] = {}
    for same in (True, False):
        for number, keeper in enumerate(keepers):
            wanted = (keeper.policy.monitor, keeper.policy.mode)
            fitting = [each for each in left if not same or (each["monitor"], each["mode"]) == wanted]
            if number not in found and fitting:
                found[number] = fitting[0]
                left.remove(fitting[0])
    empty: dict[str, Any] = {"monitor": None, "mode": "min", "entries": []}
    return [found.get(number, empty) for number in range(len(keepers))]


def run_module(run: Run) -> Any:
    """Return the module by whose names a checkpoint knows its tensors."""
    return run.strategy.unwrap(run.module)


def _prepare_weights(run: Run, restoration: Restoration) -> Weights:
    """Hold the task's tensors against those of the checkpoint."""
    weights = Weights(
        restoration.reader,
        restoration.policy,
        run_module(run),
        type(run.task).__name__,
        strict=run.task.strict_loading,
    )
    restoration.problem(*weights.problems)
    if run.task.strict_loading and restoration.policy.missing == "warn":
        for names, where in ((weights.missing, "the checkpoint lacks"), (weights.unexpected, "the task lacks")):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                restoration.mismatch("model", f"{where} {', '.join(names[:5])}{more}", "")
        for text in weights.other_base:
            restoration.mismatch("model", text, "")
    weights.tell(restoration.report)
    return weights


def _hand_back(run: Run, restoration: Restoration) -> None:
    """Hand back what callbacks and task had added to the checkpoint.

    This comes before the tensors, as in Lightning: a task may build from what it saved the layers that are loaded then.
    """
    custom = restoration.reader.state.get("custom", {})
    callbacks = run.hooks.of_callbacks("on_load_checkpoint") if restoration.takes("callbacks") else ()
    task = run.hooks.of_task("on_load_checkpoint") if restoration.takes("model") else ()
    for hook in callbacks + task:
        hook(custom)


def _require_training_state(restoration: Restoration) -> None:
    reader, parts = restoration.reader, restoration.policy.parts
    if parts - {"model"} and "optimizers" not in reader.state:
        raise CheckpointError(
            explain(
                f"{reader.path} holds weights only, so training cannot continue from it",
                fix="start a new training from it with RestorePolicy(only='model') (--restore.only model), or with "
                "TaskModule.load_from_checkpoint",
            )
        )
