"""Servers and workers as child processes that end when this process does, however it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Final

LEAVE_S: Final = 30.0  # how long processes may take to end when asked to: a checkpoint may be on its way
_KILL_S: Final = 15.0  # and how long when they are not asked any more

_children: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()


def import_path() -> list[str]:
    """Functions of modules travel by name: a worker must find the modules that this process finds."""
    return [os.path.abspath(entry) for entry in sys.path]


def start_process(
    role: str,
    arguments: Sequence[str],
    *,
    stderr: int | None = None,
    environment: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """A `loom-server` or `loom-worker` (`role`) that ends when its standard input does: it cannot outlive us."""
    own = {"PYTHONPATH": os.pathsep.join(import_path()), **(environment or {})}
    process = subprocess.Popen(
        [sys.executable, "-m", f"loom.cli.{role}", "--until-stdin-closes", *arguments],
        stdin=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, **own},
        pass_fds=pass_fds,
        start_new_session=True,  # Ctrl-C is for the script, which closes what it has in its own order
    )
    goes_with_us(process)
    return process


def goes_with_us(process: subprocess.Popen[bytes]) -> None:
    """It ends when its standard input does, which forked children of ours are not to keep open."""
    _children.add(process)


def end_processes(processes: Sequence[subprocess.Popen[bytes]], leave_s: float = LEAVE_S) -> None:
    """End them all; those that do not within so many seconds are killed."""
    for process in processes:
        _close_stdin(process)
    deadline = time.monotonic() + leave_s
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)  # the worker's supervisor kills it, and removes what it leaves
            try:
                process.wait(_KILL_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None and not process.stdin.closed:
        process.stdin.close()


def _let_go_of_all() -> None:
    """In a forked child: do not keep the processes alive when their owner is gone."""
    for process in list(_children):
        _close_stdin(process)


os.register_at_fork(after_in_child=_let_go_of_all)
