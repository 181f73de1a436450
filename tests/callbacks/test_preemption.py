"""What a run's job becomes when it is asked to leave, and the settings of that."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from loop.preempted import Noisy, Signals, loaders, trainer_of

from taskloom import ConfigError, Preempted
from taskloom.callbacks import ModelCheckpoint, OnExceptionCheckpoint, Preemption
from taskloom.loop import preemption
from taskloom.loop.preemption import requeue

BATCH = {"SLURM_JOB_ID": "41", "SLURM_JOB_NAME": "train"}
ARRAY = {**BATCH, "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scontrol that writes down its arguments, one per line; what it is to do else stands in a file beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "scontrol"
    told, orders = folder / "told", folder / "orders.py"
    orders.write_text("")
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"open({str(told)!r}, 'a').write('\\n'.join(sys.argv[1:]) + '\\n')\n"
        f"exec(open({str(orders)!r}).read())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def told(scontrol: Path) -> list[str]:
    file = scontrol / "told"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.holds("R15", "CK-23")
@pytest.mark.parametrize(
    ("variables", "settings", "received", "saved", "words", "says"),
    [
        (BATCH, {}, "SIGUSR1", True, ["requeue", "41"], "requeued by `scontrol requeue 41`"),
        (ARRAY, {}, "SIGUSR1", True, ["requeue", "40_3"], "requeued by `scontrol requeue 40_3`"),
        (BATCH, {}, "SIGTERM", True, [], "not requeued, because SIGTERM is also how a job is cancelled"),
        (BATCH, {"requeue": True}, "SIGTERM", True, ["requeue", "41"], "requeued"),
        (BATCH, {}, "SIGUSR1", False, [], "not requeued, because there is no checkpoint to continue from"),
        (BATCH, {"requeue": True}, "SIGUSR1", False, ["requeue", "41"], "requeued"),
        (BATCH, {"requeue": False}, "SIGUSR1", True, [], ""),
        (
            {**BATCH, "SLURM_JOB_NAME": "bash"},
            {},
            "SIGUSR1",
            True,
            [],
            "because 41 is an interactive job",
        ),
        ({**BATCH, "SLURM_PTY_PORT": "1"}, {}, "SIGUSR1", True, [], "41 is an interactive job"),
        ({}, {}, "SIGUSR1", True, [], ""),
        ({}, {"requeue": True}, "SIGUSR1", True, [], "not requeued, because no scheduler was recognised; set"),
        ({"TORCHELASTIC_RUN_ID": "x"}, {}, "SIGUSR1", True, [], ""),
    ],
)
def test_a_job_is_requeued_when_it_should_be(
    variables: dict[str, str],
    settings: dict[str, Any],
    received: str,
    saved: bool,
    words: list[str],
    says: str,
    scontrol: Path,
) -> None:
    outcome = requeue(Preemption(**settings), received, saved=saved, environment=variables)
    assert told(scontrol) == words
    assert outcome.done == bool(words)
    assert says in outcome.text
    assert bool(outcome.text) == bool(says)


@pytest.mark.holds("R15")
def test_the_words_of_a_command_reach_it_as_they_are(scontrol: Path) -> None:
    odd = ["scontrol", "a b", "$HOME; touch x", "{job}", "*"]
    outcome = requeue(Preemption(requeue_command=odd), "SIGUSR1", saved=True, environment=ARRAY)
    assert outcome.done
    assert told(scontrol) == ["a b", "$HOME; touch x", "40_3", "*"]
    assert requeue(Preemption(requeue_command=odd[:2]), "SIGUSR1", saved=True, environment={}).done  # any scheduler
    without_job = requeue(Preemption(requeue_command=odd), "SIGUSR1", saved=True, environment={})
    assert "requeue_command names its {job}" in without_job.text


@pytest.mark.holds("R15")
def test_a_command_that_fails_is_told_of(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scontrol / "orders.py").write_text("sys.exit('slurm_load_jobs error: Invalid job id specified')")
    outcome = requeue(Preemption(), "SIGUSR1", saved=True, environment=BATCH)
    assert not outcome.done
    assert outcome.text == (
        "not requeued: `scontrol requeue 41` ended with 1: slurm_load_jobs error: Invalid job id specified"
    )
    missing = requeue(Preemption(requeue_command=["no-such-program"]), "SIGUSR1", saved=True, environment=BATCH)
    assert "not requeued: `no-such-program` could not be run" in missing.text
    monkeypatch.setattr(preemption, "_REQUEUE_SECONDS", 0.2)
    (scontrol / "orders.py").write_text("import time\ntime.sleep(60)")
    late = requeue(Preemption(), "SIGUSR1", saved=True, environment=BATCH)
    assert late.text == "not requeued: `scontrol requeue 41` did not end within 0.2 s"


@pytest.mark.holds("R15")
def test_a_run_hands_its_job_back_once_the_checkpoint_is_there(
    scontrol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ARRAY.items():
        monkeypatch.setenv(name, value)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json"
    (scontrol / "orders.py").write_text(f"import os\nsys.exit(not os.path.exists({str(checkpoint)!r}))")
    with pytest.raises(Preempted) as left:
        trainer_of(tmp_path, Signals("training_step", 3, "SIGUSR1")).fit(Noisy(), *loaders())
    assert left.value.requeued
    assert told(scontrol) == ["requeue", "40_3"]
    trainer = trainer_of(tmp_path, Signals("training_step", 1))  # cancelled this time
    with pytest.raises(Preempted) as left:
        trainer.fit(Noisy(), *loaders(), ckpt_path="auto")
    assert not left.value.requeued
    assert told(scontrol) == ["requeue", "40_3"]
    assert trainer.stop_reason.startswith("SIGTERM arrived; not requeued, because SIGTERM is also")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"signals": ["SIGKILL"]}, "SIGKILL cannot be noticed"),
        ({"signals": ["SIGINT"]}, "SIGINT cannot ask a run to leave"),
        ({"signals": ["SIGUSR3"]}, r"no signal 'SIGUSR3'.*Did you mean 'SIGUSR"),
        ({"signals": "SIGTERM"}, r"signals=\['SIGTERM'\]"),
        ({"requeue": "yes"}, "requeue is 'auto', True or False"),
        ({"requeue_command": "scontrol requeue 1"}, "requeue_command is a list of words"),
        ({"grace": "soon"}, "grace: "),
        ({"grace": "2 epochs"}, "grace: A duration in time was expected"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Preemption(**arguments)
    with pytest.raises(ConfigError, match="2 problems"):
        Preemption(**{"requeue": 1.5, **arguments}) if "requeue" not in arguments else Preemption(
            signals=["SIGSTOP"], **arguments
        )


def test_what_the_process_does_is_shown_when_the_grace_is_nearly_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Late(Noisy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if self.global_step == 1:
                deadline = time.monotonic() + 20
                while "training_step" not in (shown := shown_so_far()) and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert "SIGTERM arrived 0.045 s ago, and the work in hand is not over:" in shown
            return loss

    text: list[str] = []

    def shown_so_far() -> str:
        text.append(capfd.readouterr().err)
        return "".join(text)

    with pytest.raises(Preempted):
        trainer_of(tmp_path, Preemption(grace=0.05), Signals("training_step", 3)).fit(Late(), *loaders())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_names_that_lightning_gives_its_checkpoint_of_a_failure_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 problems.*\n.*OnExceptionCheckpoint has no dirpath"):
        OnExceptionCheckpoint("folder", "name")


@pytest.mark.holds("CK-23")
def test_model_checkpoint_saves_on_exceptions_too(tmp_path: Path) -> None:
    def fit(number: int, **arguments: Any) -> list[str]:
        class Task(Noisy):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                if self.global_step == 2:
                    raise KeyError("broken")
                return super().training_step(batch, batch_idx)

        callback = ModelCheckpoint(every_n_epochs=9, **arguments)
        with pytest.raises(KeyError, match="broken"):
            trainer_of(tmp_path / str(number), callback, checkpoint=False).fit(Task(), *loaders())
        return [path.name for path in tmp_path.glob(f"{number}/run/checkpoints/step-*")]

    assert fit(1) == []
    assert fit(2, save_on_exception=True) == ["step-00000002"]
