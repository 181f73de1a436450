"""The configuration fits the code: a run of one batch, started as a person would start it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_fit_runs_from_the_configuration(texts, tmp_path):
    command = [sys.executable, "-m", "taskloom", "fit", "--config", "configs/train.yaml"]
    command += ["--fast_dev_run", "true", "--run_dir", str(tmp_path / "runs")]
    command += ["--data.texts", f"['{texts}/*.txt']", "--data.cache_dir", str(tmp_path / "tokens")]
    command += ["--data.val_fraction", "0.1"]

    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stdout + ran.stderr
