"""Being asked to leave: at every moment a checkpoint within one step, from which the run ends with the same bytes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loop.preempted import MOMENTS, Noisy, Signals, loaders, trainer_of
from loop.tiny import At, Line, loader, quiet

from taskloom import Callback, CheckpointPolicy, ConfigError, Preempted, RunFolder
from taskloom.callbacks import OnExceptionCheckpoint, Preemption
from taskloom.checkpoint import CheckpointError, latest_checkpoint, open_checkpoint, verify_checkpoint
from taskloom.core.policies import ValidationPolicy


def final(root: Path) -> dict[str, Any]:
    """Everything that the last checkpoint of the run holds, and its logged series; as text where it is data."""
    path, _ = latest_checkpoint(root / "run" / "checkpoints")
    assert path is not None
    reader = open_checkpoint(path)
    state = dict(reader.state)
    callbacks = {key: value for key, value in state.pop("callbacks").items() if value}
    progress = {**state.pop("progress"), "seconds": 0.0}
    # when checkpoints were kept, and by which policies, differs with the checkpoint that a signal adds
    for name in ("keepers", "agenda", "setup"):
        state.pop(name, None)
    found = {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in reader.model_tensors()},
        "moments": {name: tensor.numpy().tobytes() for name, tensor in reader.optimizer_tensors()},
        "callbacks": callbacks,
        "progress": progress,
        "series": (root / "run" / "metrics.csv").read_text(),
        **{key: repr(value) for key, value in state.items()},
    }
    reader.close()
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("uninterrupted")
    trainer_of(root).fit(Noisy(), *loaders())
    return final(root)


# The moment, how often it has come, and the step at which the run then leaves: that of the window in hand.
LEAVES = [
    ("on_train_epoch_start", 1, 1),
    ("on_train_epoch_start", 2, 4),
    ("on_train_batch_start", 2, 1),
    ("on_train_batch_start", 5, 3),
    ("training_step", 3, 2),
    ("training_step", 10, 6),
    ("on_before_optimizer_step", 2, 2),
    ("on_before_optimizer_step", 6, 6),
    ("on_train_batch_end", 1, 1),
    ("on_train_batch_end", 10, 6),
    ("on_validation_start", 1, 2),
    ("validation_step 0", 1, 2),
    ("validation_step 1", 2, 4),
    ("validation_step 1", 3, 6),
    ("on_validation_end", 3, 6),
    ("on_save_checkpoint", 1, 3),
    ("on_train_epoch_end", 1, 3),
]


@pytest.mark.holds("R15", "R13")
@pytest.mark.parametrize(("moment", "time", "step"), LEAVES)
def test_a_signal_at_any_moment_leaves_a_checkpoint_of_this_step_and_the_resumed_run_ends_with_the_same_bytes(
    moment: str, time: int, step: int, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, Signals(moment, time))
    with pytest.raises(Preempted) as left:
        trainer.fit(Noisy(), *loaders())
    assert (left.value.code, left.value.signal, trainer.state.status) == (75, "SIGTERM", "preempted")
    assert left.value.checkpoint == tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
    assert verify_checkpoint(left.value.checkpoint) == []
    assert trainer.stop_reason == "SIGTERM arrived"
    assert trainer_of(tmp_path).fit(Noisy(), *loaders(), ckpt_path="auto").status == "finished"
    assert final(tmp_path) == uninterrupted


@pytest.mark.holds("R15")
def test_a_run_may_be_asked_to_leave_again_and_again(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    for moment in ("on_train_batch_end", "on_validation_start", "validation_step 1", "training_step", "training_step"):
        with pytest.raises(Preempted):
            trainer_of(tmp_path, Signals(moment, 1, "SIGUSR1")).fit(Noisy(), *loaders(), ckpt_path="auto")
    trainer_of(tmp_path).fit(Noisy(), *loaders(), ckpt_path="auto")
    assert final(tmp_path) == uninterrupted


@pytest.mark.holds("R15")
@pytest.mark.parametrize(
    "settings",
    [
        {"val_check_interval": ValidationPolicy(every="3 batches", start_after="4 batches"), "epochs": 1.6},
        {"val_check_interval": 0.5, "accumulate_grad_batches": 1, "max_steps": 7, "epochs": 2},
        {"val_check_interval": "1 epoch", "log_every_n_steps": 3, "checkpoint": CheckpointPolicy(every="1 epoch")},
    ],
    ids=["batches", "part of an epoch", "epoch"],
)
def test_what_was_due_by_any_interval_is_done_once(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer_of(tmp_path / "whole", **settings).fit(Noisy(), *loaders())
    whole = final(tmp_path / "whole")
    for number in (2, 4, 5, 7):
        root = tmp_path / str(number)
        with pytest.raises(Preempted):
            trainer_of(root, Signals("training_step", number), **settings).fit(Noisy(), *loaders())
        trainer_of(root, **settings).fit(Noisy(), *loaders(), ckpt_path="auto")
        assert final(root) == whole, number


@pytest.mark.holds("R15")
def test_a_stop_that_was_asked_for_at_the_step_still_happens(tmp_path: Path) -> None:
    def stop(trainer: Any, _: Any) -> None:
        if trainer.global_step == 2:
            trainer.should_stop = True
            trainer.stop_reason = "enough"

    trainer_of(tmp_path / "whole", At(on_train_batch_end=stop)).fit(Noisy(), *loaders())
    with pytest.raises(Preempted):
        trainer_of(tmp_path, At(on_train_batch_end=stop), Signals("training_step", 4)).fit(Noisy(), *loaders())
    result = trainer_of(tmp_path).fit(Noisy(), *loaders(), ckpt_path="auto")
    assert (result.status, result.steps, result.stop_reason) == ("stopped", 2, "enough")
    assert final(tmp_path) == final(tmp_path / "whole")


@pytest.mark.holds("R15")
def test_what_was_requested_at_the_step_still_happens(tmp_path: Path) -> None:
    def ask(trainer: Any, _: Any) -> None:
        if trainer.progress.micro_batches == 2:
            trainer.request("validate")

    settings: dict[str, Any] = {"val_check_interval": "4 steps"}
    trainer_of(tmp_path / "whole", At(on_train_batch_end=ask), **settings).fit(Noisy(), *loaders())
    for number, moment in enumerate(("training_step", "validation_step 1")):
        root = tmp_path / str(number)
        signals = Signals(moment, 2 if moment == "training_step" else 1)
        with pytest.raises(Preempted):
            trainer_of(root, At(on_train_batch_end=ask), signals, **settings).fit(Noisy(), *loaders())
        trainer_of(root, **settings).fit(Noisy(), *loaders(), ckpt_path="auto")
        assert final(root)["series"] == final(tmp_path / "whole")["series"]


@pytest.mark.holds("R15")
def test_metric_objects_that_a_part_of_a_validation_has_filled_are_not_saved(tmp_path: Path) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.trained = torchmetrics.SumMetric(), torchmetrics.SumMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.trained.update(1.0)
            self.log("train/batches", self.trained, on_epoch=True, on_step=False)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.seen.update(1.0)

        def on_validation_epoch_end(self) -> None:
            self.log("val/batches", self.seen)

    trainer_of(tmp_path / "whole").fit(Measured(), *loaders())
    with pytest.raises(Preempted):
        trainer_of(tmp_path, Signals("validation_step 1", 2)).fit(Measured(), *loaders())
    trainer_of(tmp_path).fit(Measured(), *loaders(), ckpt_path="auto")
    assert final(tmp_path) == final(tmp_path / "whole")


@pytest.mark.holds("R15", "CK-23")
@pytest.mark.parametrize(
    "policy",
    [
        CheckpointPolicy(monitor="val/loss", save_top_k=1, keep_last=0, every="2 steps", fsync=False),
        CheckpointPolicy(every="3 steps", weights_only=True, fsync=False),
        CheckpointPolicy(every="100 epochs", fsync=False),
    ],
    ids=["only the best", "only weights", "hardly ever"],
)
def test_the_checkpoint_is_written_whatever_the_policies_keep(policy: CheckpointPolicy, tmp_path: Path) -> None:
    trainer_of(tmp_path / "whole", checkpoint=CheckpointPolicy(every="100 epochs")).fit(Noisy(), *loaders())
    with pytest.raises(Preempted) as left:
        trainer_of(tmp_path, Signals("training_step", 8), checkpoint=policy).fit(Noisy(), *loaders())
    assert left.value.checkpoint is not None
    assert latest_checkpoint(tmp_path / "run" / "checkpoints")[0] == left.value.checkpoint
    trainer_of(tmp_path, checkpoint=CheckpointPolicy(every="100 epochs")).fit(Noisy(), *loaders(), ckpt_path="auto")
    assert final(tmp_path)["weights"] == final(tmp_path / "whole")["weights"]


@pytest.mark.holds("R15")
def test_a_step_that_is_saved_already_is_not_saved_again(tmp_path: Path) -> None:
    saves = []
    again = At(on_save_checkpoint=lambda trainer, _: saves.append(trainer.global_step))
    with pytest.raises(Preempted) as left:
        trainer_of(tmp_path, again, Signals("on_save_checkpoint", 1)).fit(Noisy(), *loaders())
    assert saves == [3]
    assert left.value.checkpoint is not None
    assert left.value.checkpoint.name == "step-00000003"


@pytest.mark.holds("R15")
def test_further_signals_while_the_checkpoint_is_written_are_harmless(tmp_path: Path) -> None:
    class Repeated(Signals):
        def on_save_checkpoint(self, *_: Any) -> None:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)

        def on_exception(self, *_: Any) -> None:
            signal.raise_signal(signal.SIGTERM)

        def teardown(self, *_: Any) -> None:
            signal.raise_signal(signal.SIGTERM)

    signals = Repeated("training_step", 3)
    del vars(signals)["on_save_checkpoint"]
    with pytest.raises(Preempted) as left:
        trainer_of(tmp_path, signals).fit(Noisy(), *loaders())
    assert left.value.checkpoint is not None
    assert verify_checkpoint(left.value.checkpoint) == []


def test_ctrl_c_while_the_checkpoint_is_written_ends_at_once(tmp_path: Path) -> None:
    signals = Signals("training_step", 3)
    vars(signals)["on_save_checkpoint"] = lambda *_: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, signals, logger=False).fit(Noisy(), *loaders())


@pytest.mark.holds("R15")
@pytest.mark.parametrize("where", ["setup", "on_fit_start", "on_sanity_check_start", "sanity", "on_train_start"])
def test_before_the_first_step_there_is_nothing_to_save(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Asked(Line):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if where == "sanity":
                signal.raise_signal(signal.SIGTERM)
            return super().validation_step(batch, batch_idx)

    torn_down: list[str] = []
    asks = At(teardown=lambda *_: torn_down.append("yes"))
    if where != "sanity":
        asks = At(
            **{where: lambda *_: signal.raise_signal(signal.SIGTERM)}, teardown=lambda *_: torn_down.append("yes")
        )
    task = Asked()
    trainer = quiet(
        asks, max_epochs=1, num_sanity_val_steps=2, checkpoint=True, progress="plain", run_dir=tmp_path, logger=False
    )
    with pytest.raises(Preempted) as left:
        trainer.fit(task, loader(), loader())
    assert (left.value.checkpoint, task.seen, torn_down) == (None, [], ["yes"])
    assert "nothing was saved, because no step had been made" in capsys.readouterr().out
    assert not list(tmp_path.glob("*/checkpoints/step-*"))


@pytest.mark.holds("R15")
def test_a_run_that_keeps_no_checkpoints_says_that_nothing_was_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Signals("training_step", 3), checkpoint=False)
    with pytest.raises(Preempted) as left:
        trainer.fit(Noisy(), *loaders())
    assert left.value.checkpoint is None
    assert trainer.stop_reason == "SIGTERM arrived; nothing was saved, because the run keeps no checkpoints"


@pytest.mark.holds("R15")
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_leaves_at_the_next_batch(stage: str) -> None:
    seen: list[int] = []

    class Asked(Line):
        def asked(self, batch_idx: int) -> None:
            seen.append(batch_idx)
            if batch_idx == 1:
                signal.raise_signal(signal.SIGUSR1)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.asked(batch_idx)

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.asked(batch_idx)

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.asked(batch_idx)

    trainer = quiet()
    with pytest.raises(Preempted):
        getattr(trainer, stage)(Asked(), loader())
    assert seen == [0, 1]
    assert trainer.state.status == "preempted"


@pytest.mark.holds("R15")
def test_a_signal_in_the_last_moments_lets_the_fit_finish_and_ends_what_comes_after_it(tmp_path: Path) -> None:
    asks = At(on_train_end=lambda *_: signal.raise_signal(signal.SIGTERM))
    trainer = quiet(asks, max_epochs=1, checkpoint=True, run_dir=tmp_path)
    task = Line()
    assert trainer.fit(task, loader()).status == "finished"
    assert trainer.preemption_requested
    with pytest.raises(Preempted):
        trainer.test(task, loader())
    assert trainer.fit(task, loader()).status == "finished"  # it was answered


@pytest.fixture
def users_handler() -> Iterator[list[int]]:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    yield got
    signal.signal(signal.SIGTERM, before)


@pytest.mark.holds("R15")
def test_a_handler_of_the_users_is_called_too_and_there_again_afterwards(
    users_handler: list[int], tmp_path: Path
) -> None:
    theirs = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted) as left:
        trainer_of(tmp_path, Signals("training_step", 3)).fit(Noisy(), *loaders())
    assert left.value.checkpoint is not None
    assert users_handler == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is theirs
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@pytest.mark.holds("R15")
def test_signals_can_be_chosen(users_handler: list[int], tmp_path: Path) -> None:
    own = Preemption(signals=["SIGUSR2"])
    result = trainer_of(tmp_path / "1", own, Signals("training_step", 3, "SIGTERM")).fit(Noisy(), *loaders())
    assert (result.status, users_handler) == ("finished", [signal.SIGTERM])
    with pytest.raises(Preempted, match="75"):
        trainer_of(tmp_path / "2", own, Signals("training_step", 3, "SIGUSR2")).fit(Noisy(), *loaders())
    none = Preemption(signals=())
    assert trainer_of(tmp_path / "3", none, Signals("training_step", 3)).fit(Noisy(), *loaders()).status == "finished"


def test_several_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="There are 2 Preemption callbacks"):
        quiet(Preemption(), Preemption(), max_epochs=1).fit(Line(), loader())


@pytest.mark.holds("R15")
def test_outside_the_main_thread_nothing_is_installed_and_a_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    looks = At(on_train_start=lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    trainer = quiet(looks, max_epochs=1, progress="plain")
    thread = threading.Thread(target=lambda: trainer.fit(Line(), loader()), name="trainer")
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
    assert trainer.state.status == "finished"
    assert "SIGTERM and SIGUSR1 are not noticed, because fit runs in the thread 'trainer'" in capsys.readouterr().out


def test_a_handler_outside_python_is_left_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGUSR1 else known(number))
    seen: list[Any] = []
    looks = At(on_train_start=lambda *_: seen.append(known(signal.SIGUSR1)))
    assert quiet(looks, max_epochs=1, progress="plain").fit(Line(), loader()).status == "finished"
    assert seen == [signal.SIG_DFL]
    assert "SIGUSR1 is not noticed, because something outside Python handles it" in capsys.readouterr().out


def test_the_closing_lines_name_the_checkpoint_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = CheckpointPolicy(monitor="val/loss", every="2 steps", fsync=False)
    with pytest.raises(Preempted):
        trainer_of(Path("runs"), Signals("training_step", 9), checkpoint=policy, progress="plain").fit(
            Noisy(), *loaders()
        )
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Preempted   5 steps, 1 epoch") for line in lines)
    assert "Because     SIGTERM arrived" in lines
    assert "Next        trainer.fit(task, ckpt_path='runs/run/checkpoints/step-00000005')" in lines


@pytest.mark.holds("R15")
def test_a_checkpoint_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    def deny(trainer: Any, _: Any) -> None:
        raise CheckpointError("the disk is full")

    with pytest.raises(CheckpointError, match="the disk is full"):
        trainer_of(tmp_path, Signals("training_step", 3), At(on_save_checkpoint=deny)).fit(Noisy(), *loaders())


def test_a_process_that_was_forked_while_a_stage_ran_is_ended_by_the_signal(tmp_path: Path) -> None:
    status: list[int] = []

    def fork(trainer: Any, _: Any) -> None:
        if not status:
            ours, theirs = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(theirs, b"!")  # only now: what arrives while Python is forking is lost
                for _ in range(3000):
                    time.sleep(0.01)
                os._exit(0)
            os.read(ours, 1)
            os.close(ours)
            os.close(theirs)
            os.kill(child, signal.SIGTERM)
            status.append(os.waitpid(child, 0)[1])

    assert quiet(At(on_train_batch_start=fork), max_epochs=1).fit(Line(), loader()).status == "finished"
    assert os.WIFSIGNALED(status[0])
    assert os.WTERMSIG(status[0]) == signal.SIGTERM


# Which run is continued ---------------------------------------------------------------------------------------------


@pytest.mark.holds("CK-08")
@pytest.mark.parametrize("word", ["auto", "hpc"])
def test_auto_begins_a_named_run_and_then_continues_it(word: str, tmp_path: Path) -> None:
    first = trainer_of(tmp_path, epochs=1)
    first.fit(Noisy(), *loaders(), ckpt_path=word)
    second = trainer_of(tmp_path, epochs=2)
    assert second.fit(Noisy(), *loaders(), ckpt_path=word).steps == 6
    assert (second.run_folder, second.run_id) == (first.run_folder, first.run_id)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.holds("CK-08")
def test_auto_begins_again_in_the_folder_of_a_run_that_saved_nothing(tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        trainer_of(tmp_path, Signals("on_train_epoch_start", 1), checkpoint=False).fit(
            Noisy(), *loaders(), ckpt_path="auto"
        )
    trainer = trainer_of(tmp_path)
    assert trainer.fit(Noisy(), *loaders(), ckpt_path="auto").steps == 6
    assert trainer.run_folder == tmp_path / "run"


@pytest.mark.holds("CK-08")
def test_auto_does_not_begin_anew_beside_checkpoints_that_are_all_damaged(tmp_path: Path) -> None:
    trainer_of(tmp_path, epochs=1).fit(Noisy(), *loaders(), ckpt_path="auto")
    for path in tmp_path.glob("run/checkpoints/step-*/manifest.json"):
        path.write_text("{")
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* verifies"):
        trainer_of(tmp_path).fit(Noisy(), *loaders(), ckpt_path="auto")


@pytest.mark.holds("CK-08")
@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"SLURM_JOB_ID": "7"}, "line-slurm-7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "line-slurm-7_2"),
        ({"TORCHELASTIC_RUN_ID": "a/b"}, "line-elastic-a-b"),
    ],
)
def test_a_run_without_a_name_is_called_after_its_job(
    variables: dict[str, str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    for steps in (2, 4):
        trainer = quiet(max_steps=steps, checkpoint=True, run_dir=tmp_path)
        assert trainer.fit(Line(), loader(), ckpt_path="auto").steps == steps
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.holds("CK-08")
def test_auto_without_a_name_or_a_job_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not know which run to continue.*RunFolder\(name='my-run'\)"):
        quiet(max_steps=1, checkpoint=True, run_dir=tmp_path).fit(Line(), loader(), ckpt_path="auto")
    with pytest.raises(CheckpointError, match="finds no run with a checkpoint"):
        quiet(run_dir=tmp_path).validate(Line(), loader(), ckpt_path="auto")


# Failures -----------------------------------------------------------------------------------------------------------


class Failing(Callback):
    """Raises an error at the n-th time that a moment comes."""

    def __init__(self, moment: str, time: int) -> None:
        self.wanted, self.left = moment, time
        for hook in MOMENTS:
            if hook.startswith("on_"):
                vars(self)[hook] = lambda *_, hook=hook: self.reached(hook)

    def reached(self, moment: str) -> None:
        if moment == self.wanted:
            self.left -= 1
            if self.left == 0:
                raise KeyError(moment)

    def setup(self, trainer: Any, task: Any, stage: str) -> None:
        task.moment = self.reached


@pytest.mark.holds("CK-23")
@pytest.mark.parametrize(
    ("moment", "time", "step"),
    [
        ("on_train_batch_start", 5, 2),
        ("training_step", 4, 1),  # within a window: its first micro-batch is trained on again
        ("training_step", 5, 2),
        ("training_step", 6, 3),  # the first batch of an epoch
        ("on_before_optimizer_step", 4, 3),
        ("on_train_batch_end", 4, 2),
        ("validation_step 1", 2, 4),
        ("validation_step 0", 3, 6),
    ],
)
def test_a_failure_saves_the_last_whole_step_and_the_resumed_run_ends_with_the_same_bytes(
    moment: str, time: int, step: int, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(KeyError, match=moment):
        trainer_of(tmp_path, Failing(moment, time), OnExceptionCheckpoint()).fit(Noisy(), *loaders())
    path, _ = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert path is not None
    assert path.name == f"step-{step:08d}"
    trainer_of(tmp_path).fit(Noisy(), *loaders(), ckpt_path="last")
    assert final(tmp_path) == uninterrupted


@pytest.mark.holds("CK-23")
@pytest.mark.parametrize("at_once", [True, False])
def test_a_failed_optimizer_step_is_not_saved(
    at_once: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(torch.optim.SGD):
        left = 3

        def step(self, closure: Any = None) -> None:
            Broken.left -= 1
            if Broken.left == 0 and at_once:
                raise KeyError("before any weight changed")
            super().step(closure)
            if Broken.left == 0:
                raise KeyError("after all of them changed")

    class Task(Line):
        def configure_optimizers(self) -> Any:
            return Broken(self.parameters(), lr=0.01)

    policy = CheckpointPolicy(every="100 epochs", fsync=False)
    trainer = quiet(OnExceptionCheckpoint(), max_epochs=2, checkpoint=policy, run_dir=tmp_path, progress="plain")
    with pytest.raises(KeyError):
        trainer.fit(Task(), loader())
    saved = [path.name for path in tmp_path.glob("*/checkpoints/step-*")]
    assert saved == (["step-00000002"] if at_once else [])
    assert ("the optimizer's step itself failed" in capsys.readouterr().out) is not at_once


@pytest.mark.holds("CK-23")
def test_a_loss_that_is_not_finite_is_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Task(Line):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 2 else 1.0)

    run = RunFolder(tmp_path, name="run")
    trainer = quiet(OnExceptionCheckpoint(), max_epochs=2, checkpoint=True, run_dir=run, progress="plain")
    with pytest.raises(RuntimeError, match=r"not finite|is nan"):
        trainer.fit(Task(), loader())
    assert "No checkpoint was saved after the failure, because the weights may not be finite" in capsys.readouterr().out
    assert not list(tmp_path.glob("run/checkpoints/step-*"))
