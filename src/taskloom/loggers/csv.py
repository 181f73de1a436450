"""`CSVLogger`: metrics as a table that any program opens; what a `Trainer` logs to unless told otherwise."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

from taskloom.core.errors import explain
from taskloom.loggers.base import Logger
from taskloom.loggers.hyperparameters import write_hyperparameters
from taskloom.loggers.line_file import LineFile

_FIRST_COLUMNS = ("step", "epoch")


def _line(cells: list[str]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


class CSVLogger(Logger):
    """Writes `metrics.csv` into the run's folder: columns `step`, `epoch` and one per metric, one row per flush.

    Every row is complete on disk (in the operating system's hands) when the call returns. A metric that appears for the
    first time adds a column: the file is rewritten once, and rows before it are empty there. After a resume, rows that
    the checkpoint does not know of are removed, and the run writes them again.

    Args:
        prefix: put before every metric's name, with a `/` between.
        filename: of the table.
    """

    name: ClassVar[str] = "csv"

    def __init__(self, prefix: str = "", filename: str = "metrics.csv") -> None:
        self.prefix = prefix
        self.filename = filename
        self._columns: list[str] = []
        self._keys: dict[str, int] = {}
        self._file: LineFile | None = None
        self._folder: Path | None = None
        self._rows_known: int | None = None

    def start(self, folder: Path, *, run_name: str, project: str | None = None, resumed: bool = False) -> None:
        """Open the table; continue it when the run was resumed, replace it otherwise."""
        self._folder = folder
        self._file = LineFile(folder / self.filename)
        keep: int | None = 0
        if resumed:
            keep = None if self._rows_known is None else self._rows_known + 1
        first = self._file.open(keep)
        self._set_columns(next(csv.reader([first])) if first else [])

    @property
    def location(self) -> str:
        """Path of the table."""
        return str(self._table.path)

    @property
    def _table(self) -> LineFile:
        if self._file is None:
            raise RuntimeError(
                explain("The CSV logger has not been started", why="it does not know the run's folder yet")
            )
        return self._file

    def log_metrics(self, metrics: Mapping[str, float], step: int, epoch: int | None = None) -> None:
        """Append a row."""
        if not metrics:
            return
        table = self._table
        try:
            cells = [""] * len(self._columns)
            for name, value in metrics.items():
                cells[self._keys[name]] = str(value if isinstance(value, (int, float)) else float(value))
        except KeyError:
            self._grow(metrics)
            self.log_metrics(metrics, step=step, epoch=epoch)
            return
        cells[0], cells[1] = str(step), "" if epoch is None else str(epoch)
        table.append(",".join(cells) + "\n")

    def _grow(self, metrics: Mapping[str, float]) -> None:
        new = [name for name in map(self._column, metrics) if name not in self._columns]
        columns = [*(self._columns or _FIRST_COLUMNS), *new]
        table = self._table
        if table.lines:
            padding = b"," * len(new) + b"\n"
            table.rewrite(_line(columns), lambda row: row[:-1] + padding)
        else:
            table.append(_line(columns))
        self._set_columns(columns)

    def _column(self, name: str) -> str:
        full = f"{self.prefix}/{name}" if self.prefix else name
        return f"metric/{full}" if full in _FIRST_COLUMNS else full

    def _set_columns(self, columns: list[str]) -> None:
        self._columns = columns
        places = {column: place for place, column in enumerate(columns)}
        start = len(self.prefix) + 1 if self.prefix else 0
        self._keys = {column[start:]: place for column, place in places.items() if place >= len(_FIRST_COLUMNS)}
        for name in _FIRST_COLUMNS:  # a metric called "step" has a column of another name
            renamed = self._column(name)
            if renamed in places:
                self._keys[name] = places[renamed]

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Write `hparams.yaml` beside the table."""
        write_hyperparameters(self._table.path.with_name("hparams.yaml"), parameters)

    def finish(self, status: str) -> None:
        """Close the table."""
        if self._file is not None:
            self._file.close()

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows there are."""
        return {"rows": max(self._file.lines - 1, 0) if self._file is not None else 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember how many rows the checkpoint knows of."""
        self._rows_known = int(state["rows"])
