"""A job of a real Slurm of one node is signalled, requeues itself and ends with the same bytes.

It starts daemons of its own (Debian's packages slurm-wlm and munge), as root, and takes half a minute, so it runs where
`TASKLOOM_TEST_SLURM=1` asks for it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "loop" / "preempted.py"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol")

pytestmark = pytest.mark.skipif(
    os.environ.get("TASKLOOM_TEST_SLURM") != "1" or os.getuid() != 0 or not all(map(shutil.which, PROGRAMS)),
    reason="needs Slurm and munge, root, and TASKLOOM_TEST_SLURM=1",
)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    lines = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/socket",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool",
        "SlurmctldPort": free_port(),
        "SlurmdPort": free_port(),
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/slurmd.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log",
        "SlurmdLogFile": f"{folder}/slurmd.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "MpiDefault": "none",
        "KillWait": 10,
        "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN",
        "PartitionName": "main Nodes=ALL Default=YES State=UP",
    }
    (folder / "slurm.conf").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    files = [f"--{name}={folder}/{name.split('-')[0]}" for name in ("socket", "log-file", "seed-file", "key-file")]
    subprocess.run(["munged", "--force", *files, f"--pid-file={folder}/munged.pid"], check=True)
    subprocess.run(["slurmctld", "-c", "-i"], check=True)
    subprocess.run(["slurmd", "-c"], check=True)
    try:
        yield folder
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            with suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
        time.sleep(1)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.holds("R15", "CK-23")
@pytest.mark.parametrize("array", [False, True], ids=["job", "task of an array"])
def test_a_job_requeues_itself_and_continues(array: bool, slurm: Path, tmp_path: Path) -> None:
    root, output, job_script = tmp_path / "runs", tmp_path / "output", tmp_path / "job.sh"
    job_script.write_text(
        "#!/bin/bash\n"
        f"#SBATCH --job-name=train --requeue --open-mode=append --output={output}\n"
        f"srun --ntasks=1 {sys.executable} {SCRIPT} {root} --pause 0.3\n"
    )
    options = ["--array=3"] if array else []
    submitted = subprocess.run(
        ["sbatch", "--parsable", *options, str(job_script)], check=True, capture_output=True, text=True
    )
    job = f"{submitted.stdout.strip()}_3" if array else submitted.stdout.strip()

    def told() -> str:
        return output.read_text() if output.exists() else ""

    wait_for(lambda: "batch 3\n" in told())
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    wait_for(lambda: f"SIGUSR1 arrived; requeued by `scontrol requeue {job}`" in told())

    def state() -> str:
        shown = subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True)
        found = re.search(r"JobState=(\w+)", shown.stdout)
        return found[1] if found else ""

    wait_for(lambda: state() == "PENDING")
    # Slurm lets a requeued job wait for two minutes
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True)
    wait_for(lambda: "finished after 10" in told(), seconds=240)  # a task of an array waits regardless
    assert told().count("batch 1\n") == 1
    whole = tmp_path / "whole"
    subprocess.run([sys.executable, str(SCRIPT), str(whole)], check=True, capture_output=True)
    assert (root / "run" / "metrics.csv").read_text() == (whole / "run" / "metrics.csv").read_text()
