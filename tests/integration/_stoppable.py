"""A job that workers import quickly."""

from __future__ import annotations

import os
import signal
import time

from infra.errors import RunError
from infra.progress import is_stop_requested, report_progress


def wait_or_die(how: str) -> str:
    """Report once, then wait to be stopped, fail, or die."""
    report_progress({"pid": os.getpid()})
    if how == "fail":
        raise RunError("A job works, but got how=fail. Ask for another one.")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not is_stop_requested() and time.monotonic() < deadline:
        time.sleep(0.02)
    return how
