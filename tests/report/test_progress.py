"""Progress is drawn by time, never by batch, and leaves logs and terminals as they should be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from io import StringIO
from typing import Any

import pytest
from report.terminal import Terminal, screen
from rich.console import Console

from taskloom.report import PlainReporter, ProgressReporter, RichReporter, SilentReporter, epoch_title, resolve_reporter
from taskloom.report.base import Metrics, Stage


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Counting(ProgressReporter):
    """Counts what it is asked to draw."""

    name = "counting"

    def __init__(self, clock: Clock, interval: float = 0.2) -> None:
        super().__init__(interval, clock)
        self.drawn: list[tuple[float, int]] = []
        self.finished: list[str] = []
        self.titles: list[tuple[str, ...]] = []

    def _draw(self, stages: Sequence[Stage], now: float, metrics: Metrics) -> None:
        self.drawn.append((now, stages[-1].done))
        self.titles.append(tuple(stage.title for stage in stages))

    def _finish(self, stages: Sequence[Stage], now: float, metrics: Metrics) -> None:
        self.finished.append(stages[-1].title)

    def _message(self, text: str) -> None: ...

    def _close(self) -> None: ...


class Watched:
    """A metric that notices when it is read, as a tensor on a device would make the loop wait."""

    def __init__(self) -> None:
        self.reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 0.5


def run_epoch(
    reporter: ProgressReporter, clock: Clock, batches: int, seconds: float, metrics: Mapping[str, Any]
) -> int:
    """Do what the loop does; return how often it called `refresh`."""
    calls = 0
    reporter.start(epoch_title(0, 1), batches)
    for batch in range(batches):
        clock.now += seconds
        if clock.now >= reporter.next_refresh:
            reporter.refresh(clock.now, batch + 1, metrics)
            calls += 1
    reporter.finish(batches, metrics)
    return calls


def lines(stream: StringIO) -> list[str]:
    return stream.getvalue().splitlines()


# When
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R50")
@pytest.mark.parametrize(("seconds", "batches"), [(0.001, 60_000), (0.3, 100)])
def test_refreshes_follow_time_not_batches(seconds: float, batches: int) -> None:
    clock = Clock()
    reporter = Counting(clock)
    run_epoch(reporter, clock, batches, seconds, {})
    most = min(clock.now / 0.2, batches) + 2
    assert 0.9 * most <= len(reporter.drawn) <= most
    assert all(
        later - earlier >= 0.2 for (earlier, _), (later, _) in zip(reporter.drawn, reporter.drawn[1:], strict=False)
    )


@pytest.mark.holds("R50")
def test_the_bar_redraws_five_times_a_second_and_reads_metrics_only_then() -> None:
    clock, metric = Clock(), Watched()
    stream = StringIO()
    reporter = RichReporter(console=Console(file=stream, force_terminal=True, width=100), clock=clock)
    drawn = run_epoch(reporter, clock, 10_000, 0.001, {"loss": metric})
    reporter.close()
    assert drawn == pytest.approx(50, abs=1)
    assert metric.reads == drawn + 1  # the lasting line of the finished epoch
    # rich draws once more when the line is opened, and when a lasting line is printed above it
    assert drawn <= stream.getvalue().count("/10000  ") <= drawn + 4


@pytest.mark.holds("LG-20")
def test_silence_never_asks_to_be_called() -> None:
    reporter = resolve_reporter(False)
    clock = Clock()
    assert run_epoch(reporter, clock, 100, 1000.0, {}) == 0
    assert reporter.next_refresh == math.inf


def test_stages_nest() -> None:
    clock = Clock()
    reporter = Counting(clock)
    reporter.start("epoch 1", 10)
    clock.now = 1.0
    reporter.start("validate", 3)
    clock.now = 2.0
    reporter.refresh(clock.now, 1, {})
    reporter.finish(3, {})
    reporter.refresh(3.0, 5, {})
    reporter.finish(10, {})
    assert reporter.titles == [("epoch 1",), ("epoch 1", "validate"), ("epoch 1", "validate"), ("epoch 1",)]
    assert reporter.finished == ["validate", "epoch 1"]


def test_a_validation_does_not_slow_the_rate_of_its_epoch() -> None:
    clock, stream = Clock(), StringIO()
    reporter = PlainReporter(interval=1.0, stream=stream, clock=clock)
    reporter.start("epoch 1", 100)
    reporter.refresh(1.0, 10, {})
    clock.now = 1.0
    reporter.start("validate", 3)
    clock.now = 51.0
    reporter.finish(3, {})
    reporter.refresh(52.0, 20, {})
    assert lines(stream)[-1] == "epoch 1  20/100 batches  10.0 batches/s  8.0 s left"


def test_a_resumed_epoch_does_not_count_what_it_skipped() -> None:
    stage = Stage("epoch 1", 100, 50, started=0.0)
    stage.update(1.0, 60)
    assert stage.rate == pytest.approx(10.0)


@pytest.mark.parametrize(("epoch", "epochs", "title"), [(0, 5, "epoch 1/5"), (4, None, "epoch 5"), (4, -1, "epoch 5")])
def test_epoch_titles(epoch: int, epochs: int | None, title: str) -> None:
    assert epoch_title(epoch, epochs) == title


# Plain lines
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R50", "LG-20")
def test_plain_lines_come_once_per_interval_and_hold_no_control_characters() -> None:
    clock, stream = Clock(), StringIO()
    reporter = PlainReporter(interval=10.0, stream=stream, clock=clock)
    run_epoch(reporter, clock, 130, 0.5, {"train/loss": 0.25})
    reporter.close()
    assert len(lines(stream)) == 7  # six intervals, and the end
    assert lines(stream)[0] == "epoch 1/1  20/130 batches  2.0 batches/s  55.0 s left  train/loss 0.25"
    assert lines(stream)[-1] == "epoch 1/1  130/130 batches in 1:05  train/loss 0.25"
    assert all(character.isprintable() for character in stream.getvalue().replace("\n", ""))


@pytest.mark.holds("R50")
def test_short_epochs_do_not_flood_a_log() -> None:
    clock, stream = Clock(), StringIO()
    reporter = PlainReporter(stream=stream, clock=clock)
    for epoch in range(1000):
        reporter.start(epoch_title(epoch, 1000), 10)
        clock.now += 0.1
        reporter.finish(10, {"epoch": epoch})
    reporter.close()
    assert len(lines(stream)) <= 101
    assert lines(stream)[-1].startswith("epoch 1000/1000  10/10 batches")


def test_a_loader_without_a_length() -> None:
    clock, stream = Clock(), StringIO()
    reporter = PlainReporter(interval=1.0, stream=stream, clock=clock)
    reporter.start("predict")
    reporter.refresh(2.0, 4, {})
    clock.now = 4.0
    reporter.finish(8, {})
    assert lines(stream) == ["predict  4 batches  2.0 batches/s  2.0 s", "predict  8 batches in 4.0 s"]


def test_a_nested_stage_is_named_by_its_way() -> None:
    clock, stream = Clock(), StringIO()
    reporter = PlainReporter(interval=1.0, stream=stream, clock=clock)
    reporter.start("epoch 1", 10)
    reporter.start("validate", 4)
    reporter.refresh(2.0, 1, {})
    reporter.finish(4, {})
    assert lines(stream) == ["epoch 1 > validate  1/4 batches  2.0 s/batch  6.0 s left"]


def test_a_stage_may_leave_nothing_behind() -> None:
    stream = StringIO()
    reporter = PlainReporter(stream=stream, clock=Clock())
    reporter.start("sanity check", 2, lasting=False)
    reporter.finish(2, {})
    reporter.close()
    assert stream.getvalue() == ""


def test_what_was_cut_short_says_where() -> None:
    clock, stream = Clock(), StringIO()
    reporter = PlainReporter(stream=stream, clock=clock)
    reporter.start("epoch 1/3", 10)
    reporter.refresh(1.0, 4, {})
    reporter.close()
    reporter.close()
    assert lines(stream)[-1] == "epoch 1/3  4/10 batches  stopped here"
    assert len(lines(stream)) == 2


def test_plain_lines_follow_a_replaced_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    PlainReporter().message("text")
    assert capsys.readouterr().out == "text\n"


# Choosing
# -----------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("LG-20")
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, PlainReporter),
        ("auto", PlainReporter),
        ("plain", PlainReporter),
        (False, SilentReporter),
        ("none", SilentReporter),
        ("rich", RichReporter),
        (RichReporter(interval=1.0), RichReporter),
    ],
)
def test_names_without_a_terminal(value: Any, kind: type[ProgressReporter]) -> None:
    assert type(resolve_reporter(value)) is kind


def test_only_one_process_shows_anything() -> None:
    assert isinstance(resolve_reporter("rich", visible=False), SilentReporter)


@pytest.mark.holds("LG-20")
def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"no progress display 'plan'.*Did you mean 'plain'"):
        resolve_reporter("plan")


def test_a_coloured_log_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(resolve_reporter(True), PlainReporter)


@pytest.mark.holds("R50")
@pytest.mark.parametrize(("widgets", "kind"), [(ModuleSpec("ipywidgets", None), RichReporter), (None, PlainReporter)])
def test_in_a_notebook(
    widgets: ModuleSpec | None, kind: type[ProgressReporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "is_jupyter", True, raising=False)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("taskloom.report.progress.find_spec", lambda name: widgets)
    assert type(resolve_reporter(True)) is kind


# On a real terminal
# -------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from taskloom.report import resolve_reporter, epoch_title
reporter = resolve_reporter(True)
reporter.interval = 0.0  # so that every call draws, whatever the machine's speed
try:
    for epoch in range(2):
        reporter.start(epoch_title(epoch, 2), 20)
        for batch in range(20):
            reporter.refresh(time.perf_counter(), batch + 1, {"train/loss": 0.25})
            if batch == 10 and sys.argv[1] == "prints":
                print("printed by the user")
                print("and on stderr", file=sys.stderr)
                reporter.message("a message [bold]")
        if sys.argv[1] == "interrupted":
            raise KeyboardInterrupt
        reporter.finish(20, {"val/accuracy": 0.75})
finally:
    reporter.close()
print("what follows")
"""


def on_terminal(mode: str) -> str:
    with Terminal("-c", SCRIPT, mode) as terminal:
        return terminal.read_to_end()


@pytest.mark.holds("LG-20", "R50")
def test_a_terminal_gets_a_bar_in_one_place_and_one_line_per_epoch() -> None:
    written = on_terminal("quiet")
    assert written.count("batches/s") >= 2 * 20
    assert "━━━━━━━━━━━━" in written
    shown = screen(written)
    assert [line.split("  ")[0] for line in shown] == ["epoch 1/2", "epoch 2/2", "what follows"]
    assert all("val/accuracy 0.75" in line and "━" not in line for line in shown[:2])


@pytest.mark.holds("LG-20")
def test_what_a_user_prints_stands_above_the_bar() -> None:
    shown = screen(on_terminal("prints"))
    said = ["printed by the user", "and on stderr", "a message [bold]"]
    assert shown[:3] == said
    assert [line for line in shown if line in said] == said * 2


@pytest.mark.holds("LG-20", "R50")
def test_an_interrupt_leaves_the_terminal_as_it_was() -> None:
    written = on_terminal("interrupted")
    assert "\x1b[?25l" not in written  # the cursor was never hidden, so not even a kill could leave it so
    shown = screen(written)
    assert shown[0] == "epoch 1/2  20/20 batches  stopped here"
    assert shown[1].startswith("Traceback")
    assert shown[-1] == "KeyboardInterrupt"
