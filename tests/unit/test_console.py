"""How far a run is, for people and for logs."""

from __future__ import annotations

import io
import re

import pytest

from flows import console
from flows.console import LiveReporter, PlainReporter, shown


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a clock that is moved by hand in place of the real one."""
    found = Clock()
    monkeypatch.setattr(console, "time", found)
    return found


def test_a_log_has_a_line_per_stage() -> None:
    """Where there is no terminal, a stage that is over is one line, which says if an earlier run did its work."""
    stream = io.StringIO()
    with shown(stream) as reporter:
        for stage, seconds, is_cached in (("profile", 1.26, False), ("encode", 12.0, True)):
            reporter.started(stage)
            reporter.advanced(stage, 1, 2, "")
            reporter.ended(stage, seconds, is_cached)

    assert "profile        1.3 s\nencode        12.0 s  cached\n" == stream.getvalue()


def test_a_long_stage_says_now_and_then_how_far_it_is(clock: Clock) -> None:
    """A line every five seconds, and no more, however often a stage reports."""
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.started("train")
    for second in range(12):
        clock.now = float(second)
        reporter.advanced("train", second * 1000, 12_000, "loss 0.5" if second < 8 else "")

    assert "  train: 5,000 of 12,000 loss 0.5\n  train: 10,000 of 12,000\n" == stream.getvalue()


def test_a_new_stage_starts_its_own_clock(clock: Clock) -> None:
    """The time of the stage before does not make the next one print at once."""
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    clock.now = 100.0
    reporter.started("train")
    reporter.advanced("train", 1, 2, "")

    assert "" == stream.getvalue()


def test_a_terminal_gets_a_line_per_stage() -> None:
    """In a terminal a finished stage leaves one line, and the bars are gone at the end."""
    stream = Terminal()
    with shown(stream) as reporter:
        assert isinstance(reporter, LiveReporter)
        reporter.started("profile")
        reporter.advanced("profile", 1, 2, "one [of] two")
        reporter.ended("profile", 1.26, is_cached=False)
        reporter.started("encode")
        reporter.ended("encode", 0.1, is_cached=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = [line.strip() for line in plain.replace("\r", "\n").splitlines() if "✓" in line]

    assert ["✓ profile        1.3 s", "✓ encode         0.1 s cached"] == lines


def test_a_stage_may_run_twice() -> None:
    """A stage that a run needs twice has a bar each time."""
    stream = Terminal()
    with shown(stream) as reporter:
        for _ in range(2):
            reporter.started("evaluate")
            reporter.ended("evaluate", 1.0, is_cached=False)

    assert 2 == stream.getvalue().count("✓")


def test_an_interrupted_run_leaves_the_terminal_usable() -> None:
    """The cursor that the display hid is shown again when a run fails."""
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), shown(stream) as reporter:
        reporter.started("train")
        raise KeyboardInterrupt

    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress goes to standard error: standard output is for what a command answers."""
    with shown() as reporter:
        reporter.started("train")
        reporter.ended("train", 1.0, is_cached=False)

    assert ("", "train          1.0 s\n") == tuple(capsys.readouterr())
