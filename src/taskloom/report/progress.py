"""The three ways a run shows its progress: a line that redraws itself, plain lines for logs, and nothing.

The redrawn line is composed here and shown through `rich.live`, which knows terminals and notebooks and lets `print`
write above it. `rich.progress` itself would cost three times as much per refresh (1.5 ms beside a running training
loop), more than the half per cent of the time that a bar may take.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, TextIO

from taskloom.core.errors import explain, nearest
from taskloom.report.base import Metrics, ProgressReporter, Stage
from taskloom.report.text import format_duration, format_metrics, format_rate

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

_BAR_WIDTH = 24  # characters; less in a narrow terminal, where the metrics matter more


def _count(stage: Stage) -> str:
    return f"{stage.done}" if math.isinf(stage.total) else f"{stage.done}/{int(stage.total)}"


def _pace(stage: Stage, now: float) -> str:
    remaining = stage.remaining
    running = remaining is not None and stage.done < stage.total
    left = f"{format_duration(remaining)} left" if running and remaining else format_duration(now - stage.started)
    return "  ".join(part for part in (format_rate(stage.rate), left) if part)


class SilentReporter(ProgressReporter):
    """Shows nothing but messages."""

    name: ClassVar[str] = "none"

    def __init__(self) -> None:
        super().__init__(interval=math.inf)

    def _draw(self, stages: Sequence[Stage], now: float, metrics: Metrics) -> None:
        pass

    def _finish(self, stages: Sequence[Stage], now: float, metrics: Metrics) -> None:
        pass

    def _message(self, text: str) -> None:
        print(text, flush=True)

    def _close(self) -> None:
        pass


class _SummarizingReporter(ProgressReporter):
    """What bar and lines share: one lasting line per finished outer stage, but no flood of them.

    Outer stages (epochs) that end within `summary_gap` seconds of the last lasting line are not given one; the line of
    the last stage is held back instead and printed when the reporter closes.
    """

    summary_gap: ClassVar[float] = 1.0

    def __init__(self, interval: float, clock: Callable[[], float]) -> None:
        super().__init__(interval, clock)
        self._last_line = -math.inf
        self._held: str | None = None

    def _finish(self, stages: Sequence[Stage], now: float, metrics: Metrics) -> None:
        stage = stages[-1]
        if len(stages) > 1 or not stage.lasting:
            return
        seconds = now - stage.started
        parts = (f"{stage.title}  {_count(stage)} batches in {format_duration(seconds)}", format_metrics(metrics))
        line = "  ".join(part for part in parts if part)
        if now - self._last_line < self.summary_gap:
            self._held = line
        else:
            self._lasting(line, now)

    def _lasting(self, line: str, now: float) -> None:
        self._held, self._last_line = None, now
        self._message(line)

    def _close(self) -> None:
        now = self._clock()
        if self._held is not None:
            self._lasting(self._held, now)
        if self._stages:  # it ends early: an exception or Ctrl-C
            reached = " > ".join(f"{stage.title}  {_count(stage)} batches" for stage in self._stages)
            self._lasting(f"{reached}  stopped here", now)


class PlainReporter(_SummarizingReporter):
    """One line per interval and at the end of an epoch, without control characters: for files, pipes and batch systems.

    Args:
        interval: seconds between two lines.
        stream: where to; by default what `sys.stdout` is at the time.
        clock: seconds, as the loop measures them.
    """

    name: ClassVar[str] = "plain"
    _draws_at_once: ClassVar[bool] = False

    def __init__(
        self, interval: float = 10.0, stream: TextIO | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(interval, clock)
        self._stream = stream

    def _draw(self, stages: Sequence[Stage], now: float, metrics: Metrics) -> None:
        stage = stages[-1]
        title = " > ".join(each.title for each in stages)
        parts = (f"{title}  {_count(stage)} batches", _pace(stage, now), format_metrics(metrics))
        self._lasting("  ".join(part for part in parts if part), now)

    def _message(self, text: str) -> None:
        print(text, file=self._stream or sys.stdout, flush=True)


class RichReporter(_SummarizingReporter):
    """A line that redraws itself, one more for what runs within it, and a lasting line per finished epoch above.

    The cursor is never hidden, so that not even a killed process leaves the terminal without one.

    Args:
        interval: seconds between two refreshes.
        style: of the bar, in rich's words (`"cyan"`, `"bold magenta"`).
        console: a `rich.console.Console` to draw on; by default one on what `sys.stdout` is at the time.
        clock: seconds, as the loop measures them.
    """

    name: ClassVar[str] = "rich"

    def __init__(
        self,
        interval: float = 0.2,
        style: str = "cyan",
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(interval, clock)
        self._style = style
        self._console = console
        self._live: Live | None = None

    def _draw(self, stages: Sequence[Stage], now: float, metrics: Metrics) -> None:
        if self._live is None:
            self._live = self._open()
        width = min(_BAR_WIDTH, self._live.console.width // 8)
        self._live.update(self._compose(stages, now, metrics, width), refresh=True)

    def _compose(self, stages: Sequence[Stage], now: float, metrics: Metrics, width: int) -> Text:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="ellipsis")
        for depth, stage in enumerate(stages):
            text.append(f"{'' if depth == 0 else chr(10)}{'  ' * depth}{stage.title}  ")
            if not math.isinf(stage.total) and stage.total:
                filled = round(width * min(stage.done / stage.total, 1))
                text.append("━" * filled, self._style).append("━" * (width - filled), "bright_black").append("  ")
            text.append(f"{_count(stage)}  {_pace(stage, now)}")
        text.append(f"  {format_metrics(metrics)}")
        return text

    def _open(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        class OpenConsole(Console):
            def show_cursor(self, show: bool = True) -> bool:
                return False

        # Without rich's own refresh thread: drawing is the loop's decision, and a thread would take the interpreter
        # from it.
        live = Live(
            console=self._console or OpenConsole(highlight=False),
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
        )
        live.start()
        return live

    def _message(self, text: str) -> None:
        if self._live is None:
            print(text, flush=True)
        else:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _close(self) -> None:
        super()._close()
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()


_REPORTERS: dict[str, Callable[[], ProgressReporter]] = {
    reporter.name: reporter for reporter in (RichReporter, PlainReporter, SilentReporter)
}


def resolve_reporter(progress: bool | str | ProgressReporter, *, visible: bool = True) -> ProgressReporter:
    """Return the reporter that a `Trainer`'s `progress` asks for.

    Args:
        progress: True or `"auto"` for a redrawn line where there is a terminal or a notebook that can show it and plain
            lines elsewhere; False or `"none"`; `"rich"`; `"plain"`; or a reporter.
        visible: False in every process but the one that speaks for all.

    Raises:
        ValueError: there is no reporter of that name.
    """
    if not visible or progress is False:
        return SilentReporter()
    if isinstance(progress, ProgressReporter):
        return progress
    if progress is True or progress == "auto":
        return RichReporter() if _can_redraw() else PlainReporter()
    if progress not in _REPORTERS:
        names = ("auto", *_REPORTERS)
        known = ", ".join(map(repr, names))
        raise ValueError(
            explain(
                f"There is no progress display {progress!r}",
                fix=f"use one of {known}, True, False, or a ProgressReporter.{nearest(progress, names)}",
            )
        )
    return _REPORTERS[progress]()


def _can_redraw() -> bool:
    from rich.console import Console

    console = Console()
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None  # without them rich draws nothing in a notebook
    # Asked of the stream rather than of rich: variables such as FORCE_COLOR make rich colour a log file, which is no
    # terminal.
    return sys.stdout.isatty() and not console.is_dumb_terminal
