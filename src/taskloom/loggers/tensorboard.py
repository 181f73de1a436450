"""`TensorBoardLogger`: event files for TensorBoard, through torch's own writer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from taskloom.core.errors import explain, require_package
from taskloom.loggers.base import Logger
from taskloom.loggers.hyperparameters import flatten_hyperparameters

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger(Logger):
    """Writes event files into the run's folder, so that `tensorboard --logdir runs` shows each run by its name.

    After a resume, points that the checkpoint does not know of are superseded: TensorBoard hides them.

    Args:
        sub_dir: folder below the run's folder; None writes into the run's folder itself.
        prefix: put before every metric's name, with a `/` between.
        log_graph: record the graph of the task at the start; it needs `example_input_array`.
        default_hp_metric: show hyper-parameters beside a metric `hp_metric`, which is -1 until it is logged; without it
            TensorBoard's table of hyper-parameters stays empty until one of `hp_metrics` is logged.
        hp_metrics: metrics to show in the table of hyper-parameters.
        max_queue: events that may wait in memory.
        flush_secs: seconds between two writes.

    Raises:
        MissingPackageError: the package tensorboard is not installed.
    """

    name: ClassVar[str] = "tensorboard"

    def __init__(
        self,
        sub_dir: str | None = None,
        prefix: str = "",
        log_graph: bool = False,
        default_hp_metric: bool = True,
        hp_metrics: Sequence[str] = (),
        max_queue: int = 10,
        flush_secs: int = 30,
    ) -> None:
        require_package(type(self).__name__, "tensorboard>=2.16", extra="tensorboard")
        self.sub_dir = sub_dir
        self.prefix = prefix
        self.logs_graph = log_graph
        self._hp_metrics = [*hp_metrics, *(["hp_metric"] if default_hp_metric else [])]
        self._max_queue, self._flush_secs = max_queue, flush_secs
        self._writer: SummaryWriter | None = None
        self._folder: Path | None = None
        self._latest: dict[str, float] = {}
        self._latest_step: int | None = None
        self._finished = False

    def start(self, folder: Path, *, run_name: str, project: str | None = None, resumed: bool = False) -> None:
        """Open an event file; after a resume it hides what the checkpoint does not know of."""
        with catch_warnings():
            simplefilter("ignore", DeprecationWarning)  # of the packages that tensorboard itself imports
            from torch.utils.tensorboard import SummaryWriter

        self._finished = False
        self._folder = folder / self.sub_dir if self.sub_dir else folder
        if not resumed:
            self._latest, self._latest_step = {}, None
            for stale in self._folder.glob("events.out.tfevents.*"):
                stale.unlink()
        self._writer = SummaryWriter(
            str(self._folder), purge_step=self._latest_step, max_queue=self._max_queue, flush_secs=self._flush_secs
        )
        # Hiding begins at a step, and part of what was logged at that step the checkpoint does know of.
        for name, value in self._latest.items():
            self._writer.add_scalar(name, value, self._latest_step)

    @property
    def experiment(self) -> SummaryWriter:
        """The `torch.utils.tensorboard.SummaryWriter`.

        Raises:
            RuntimeError: the run has not begun.
        """
        if self._writer is None:
            why = "it does not know the run's folder yet"
            raise RuntimeError(explain("The TensorBoard logger has not been started", why=why))
        return self._writer

    @property
    def location(self) -> str:
        """The folder of the event files."""
        return str(self._folder or "")

    @property
    def viewer(self) -> str:
        """The command that shows the curves."""
        return f"tensorboard --logdir {quote(str(self._folder))}" if self._folder else ""

    def _tag(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def log_metrics(self, metrics: Mapping[str, float], step: int, epoch: int | None = None) -> None:
        """Record each value under its name."""
        writer = self.experiment
        if step != self._latest_step:
            self._latest, self._latest_step = {}, step
        for name, value in {**metrics, **({} if epoch is None else {"epoch": epoch})}.items():
            tag = self._tag(name)
            self._latest[tag] = float(value)
            writer.add_scalar(tag, float(value), step)
        if self._finished:
            writer.close()  # values after the end of the run, such as a test's, leave nothing open

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Record the hyper-parameters for TensorBoard's table of runs."""
        from torch.utils.tensorboard import summary

        metrics = dict.fromkeys(self._hp_metrics, -1)
        untyped: Any = (summary.hparams, self.experiment._get_file_writer)
        hparams, file_writer = untyped
        # Not the public add_hparams, which would open a run of its own.
        for record in hparams(flatten_hyperparameters(parameters), metrics):
            file_writer().add_summary(record)
        if "hp_metric" in metrics and self._latest_step is None:
            self.experiment.add_scalar("hp_metric", -1, 0)

    def log_text(self, name: str, text: str, *, step: int) -> None:
        """Record a text; Markdown is rendered."""
        self.experiment.add_text(self._tag(name), text, step)

    def log_image(self, name: str, image: Any, *, step: int) -> None:
        """Record an image: height × width (× channels), uint8, or float from 0 to 1."""
        pixels = image.detach().cpu() if isinstance(image, Tensor) else torch.as_tensor(image)
        layout = {2: "HW", 3: "HWC"}.get(pixels.ndim)
        if layout is None:
            raise ValueError(explain("An image has two or three dimensions", got=tuple(pixels.shape)))
        self.experiment.add_image(self._tag(name), pixels.numpy(), step, dataformats=layout)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int) -> None:
        """Record a table, as text in Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        self.experiment.add_text(self._tag(name), text, step)

    def log_graph(self, module: Any, example_input: Any) -> None:
        """Record the graph of a module, traced with an example input."""
        with catch_warnings():
            simplefilter(
                "ignore", DeprecationWarning
            )  # torch's writer traces with torch.jit, which torch is leaving behind
            self.experiment.add_graph(module, example_input)

    def flush(self) -> None:
        """Write what is waiting."""
        if self._writer is not None:
            self._writer.flush()

    def finish(self, status: str) -> None:
        """Write what is waiting and close the event file."""
        self._finished = True
        if self._writer is not None:
            self._writer.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the last step and what was logged at it."""
        self.flush()
        return {"step": self._latest_step, "latest": dict(self._latest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what the checkpoint knows of."""
        self._latest_step, self._latest = state["step"], dict(state["latest"])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else str(value)
    return json.dumps(text)[1:-1].replace("|", "\\|") if "\n" in text or "|" in text else text
