"""Child processes that cannot outlive their parent, even when the parent is killed with SIGKILL.

The command runs below a small supervisor, this very file, whose standard input is a pipe from the parent. The
kernel closes the pipe when the parent ends, however it ends; the supervisor then ends the command's process group.
The supervisor lives in a session of its own, so that Ctrl-C in a terminal reaches the parent first, which can then
stop its children in order.

This file runs as a script in isolated mode: it imports the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL."""
ORPHAN_GRACE_SECONDS = 3.0
"""The same at most where the parent was killed: whom a child would still speak to ends as well, and the next start
must not meet what is left of this one."""
MAX_LOG_BYTES = 1_000_000
POLL_SECONDS = 0.2
ESCAPE_SECONDS = 2.0
"""How much longer than its grace a supervisor may take before it is killed itself."""


class SupervisedProcess:
    """A command that ends at the latest when this process does."""

    def __init__(self, supervisor: subprocess.Popen[bytes], log: Path, grace_seconds: float) -> None:
        self.log = log
        self._supervisor = supervisor
        self._grace_seconds = grace_seconds

    @property
    def pid(self) -> int:
        """The supervisor's process id; the command is its child."""
        return self._supervisor.pid

    @property
    def exit_code(self) -> int | None:
        """The command's exit code, negative for a signal; None while it runs."""
        code = self._supervisor.poll()
        return None if code is None else (128 - code if code > 128 else code)

    def is_alive(self) -> bool:
        """Return whether the command still runs."""
        return self._supervisor.poll() is None

    def stop(self) -> None:
        """End the command and all it started: SIGTERM, then SIGKILL. A second call does nothing."""
        assert self._supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._supervisor.stdin.close()
        try:
            self._supervisor.wait(self._grace_seconds + ESCAPE_SECONDS)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()

    def tail(self, num_lines: int = 20) -> str:
        """Return the last lines that the command has written, for a message."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-num_lines:])
        return ""


def start_supervised(
    command: Sequence[str], *, env: Mapping[str, str], log: Path, grace_seconds: float = GRACE_SECONDS
) -> SupervisedProcess:
    """Start a command whose output is appended to `log`; return at once.

    A log of more than 1 MB is begun anew. `env` is the command's whole environment. A command that does not exist
    ends with code 127 and a line in the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    supervise = [sys.executable, "-I", "-S", __file__, f"--parent={os.getpid()}", f"--grace={grace_seconds}"]
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.unlink()
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [*supervise, "--", *command],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return SupervisedProcess(supervisor, log, grace_seconds)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def supervise(command: Sequence[str], parent: int, grace_seconds: float) -> int:
    """Run a command until it ends, the parent is gone, or a SIGTERM comes; return its exit code."""
    asked_to_stop = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    signal.signal(signal.SIGTERM, stop)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _signal, _frame: None)  # SIG_IGN would be inherited by the command
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"Cannot start {command[0]}: {error}", file=sys.stderr, flush=True)
        return 127
    while child.poll() is None and not asked_to_stop and not is_parent_gone(parent):
        pass
    end_group(child, grace_seconds, parent)
    return child.returncode


def is_parent_gone(parent: int) -> bool:
    """Wait a moment for the parent's end of the pipe to close.

    The parent's id is looked at as well: a process forked from the parent would keep the pipe open.
    """
    readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    return bool(readable) or os.getppid() != parent


def end_group(child: subprocess.Popen[bytes], grace_seconds: float, parent: int) -> None:
    """Send SIGTERM to the child's process group, and SIGKILL to what is left of it after the grace."""
    began = time.monotonic()
    signal_group(child.pid, signal.SIGTERM)
    while signal_group(child.pid, 0):
        child.poll()
        if os.getppid() != parent:  # it may be seen later than the closed pipe
            grace_seconds = min(grace_seconds, ORPHAN_GRACE_SECONDS)
        if time.monotonic() - began >= grace_seconds:
            break
        time.sleep(0.02)
    signal_group(child.pid, signal.SIGKILL)
    child.wait()


def signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; return whether it still has a member."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return False
    return True


def main() -> int:
    """Run the supervisor."""
    parser = argparse.ArgumentParser(description="Run a command that ends when standard input closes.")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    code = supervise(asked.command, asked.parent, asked.grace)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
