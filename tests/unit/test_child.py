"""A function in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import psutil
import pytest

from infra.child import ChildLostError, run_in_child

FUNCTIONS = """
import os, signal, time
from infra.progress import report_progress

def add(x, y):
    report_progress({"x": x})
    return x + y, os.getpid(), os.environ.get("COLOUR")

def refuse(): raise ValueError("no")
def die(): os.kill(os.getpid(), signal.SIGSEGV)
def hang():
    report_progress({"pid": os.getpid()})
    time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def _functions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("functions")
    (folder / "child_functions.py").write_text(FUNCTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop("child_functions", None)


def _function(name: str) -> Any:
    return getattr(__import__("child_functions"), name)


def test_a_function_answers_from_another_process() -> None:
    """What it returns and tells arrives here; what it finds in its environment is what was given."""
    heard: list[dict[str, Any]] = []
    total, pid, colour = run_in_child(_function("add"), (1, 2), on_event=heard.append, env={"COLOUR": "green"})

    assert (3, "green", [{"x": 1}]) == (total, colour, heard)
    assert os.getpid() != pid


def test_its_own_error_is_raised() -> None:
    """An error of the function is raised as it is."""
    with pytest.raises(ValueError, match="^no$"):
        run_in_child(_function("refuse"), ())


def test_a_process_that_dies_says_how() -> None:
    """A process that is killed by a signal is an error that tells the signal."""
    with pytest.raises(ChildLostError, match=f"code={-signal.SIGSEGV}") as found:
        run_in_child(_function("die"), ())
    assert -signal.SIGSEGV == found.value.code


def test_a_process_that_hangs_can_be_killed() -> None:
    """What the check raises ends the process, and is raised; nothing is left of it."""
    heard: list[dict[str, Any]] = []

    def check() -> None:
        if heard:
            raise TimeoutError("late")

    with pytest.raises(TimeoutError, match="late"):
        run_in_child(_function("hang"), (), on_event=heard.append, check=check)

    assert not psutil.pid_exists(heard[0]["pid"])
