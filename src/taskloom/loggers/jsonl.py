"""`JSONLLogger`: one JSON object per line, for programs and for tables whose columns change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from taskloom.core.errors import explain
from taskloom.loggers.base import Logger
from taskloom.loggers.line_file import LineFile


class JSONLLogger(Logger):
    """Writes `metrics.jsonl` into the run's folder: `{"step": 50, "epoch": 0, "train/loss": 0.25}` per flush.

    Values that are not finite become the texts `"nan"`, `"inf"` and `"-inf"`, because JSON has no numbers for them.
    Texts and tables are lines of their own, with the key `"text"` or `"table"`. After a resume, lines that the
    checkpoint does not know of are removed, and the run writes them again.

    Args:
        filename: of the file.
    """

    name: ClassVar[str] = "jsonl"

    def __init__(self, filename: str = "metrics.jsonl") -> None:
        self.filename = filename
        self._file: LineFile | None = None
        self._lines_known: int | None = None

    def start(self, folder: Path, *, run_name: str, project: str | None = None, resumed: bool = False) -> None:
        """Open the file; continue it when the run was resumed, replace it otherwise."""
        self._file = LineFile(folder / self.filename)
        self._file.open(keep=self._lines_known if resumed else 0)

    @property
    def location(self) -> str:
        """Path of the file."""
        return str(self._lines.path)

    @property
    def _lines(self) -> LineFile:
        if self._file is None:
            why = "it does not know the run's folder yet"
            raise RuntimeError(explain("The JSON lines logger has not been started", why=why))
        return self._file

    def _append(self, record: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps(record, allow_nan=False) + "\n")

    def log_metrics(self, metrics: Mapping[str, float], step: int, epoch: int | None = None) -> None:
        """Append a line."""
        if metrics:
            values = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
            self._append({"step": step, **({} if epoch is None else {"epoch": epoch}), **values})

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Write `hparams.json` beside the file."""
        path = self._lines.path.with_name("hparams.json")
        path.write_text(json.dumps(dict(parameters), indent=2) + "\n", encoding="utf-8")

    def log_text(self, name: str, text: str, *, step: int) -> None:
        """Append a line with the text."""
        self._append({"step": step, "name": name, "text": text})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int) -> None:
        """Append a line with the table."""
        table = {"columns": list(columns), "rows": [list(row) for row in rows]}
        self._append({"step": step, "name": name, "table": table})

    def finish(self, status: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def state_dict(self) -> dict[str, Any]:
        """Return how many lines there are."""
        return {"lines": self._file.lines if self._file is not None else 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember how many lines the checkpoint knows of."""
        self._lines_known = int(state["lines"])
