"""A server and a worker of this machine that live as long as their client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from loom.errors import LoomError, LoomException
from loom.resources import cpus as check_cpus

_BACKLOG: Final = 64
_LEAVE_S: Final = 5.0  # how long the processes may take to end when asked to
_SOON_S: Final = 3.0  # a worker that ends earlier than this after its start has a lasting reason
_QUICK_ENDS: Final = 3  # so many in a row and it is not started again


_clusters: weakref.WeakSet[EmbeddedCluster] = weakref.WeakSet()


class EmbeddedCluster:
    """Its processes end when their standard input does, so they cannot outlive the process that made them.

    A worker that dies is replaced. `broken` is called once, with the reason, where that does not help.
    """

    def __init__(self, cpus: int | None, broken: Callable[[LoomException], None]) -> None:
        self.address = "127.0.0.1"
        self._cpus = check_cpus(cpus).cpus if cpus is not None else len(os.sched_getaffinity(0))
        self._broken = broken
        self._closing = False
        self._lock = threading.Lock()
        listening = socket.create_server((self.address, 0), backlog=_BACKLOG)
        try:
            self.port: int = listening.getsockname()[1]
            descriptor = listening.fileno()
            self._server = _start("server", "--listening-fd", str(descriptor), pass_fds=(descriptor,))
        finally:
            listening.close()
        self._worker = self._start_worker()
        _clusters.add(self)
        for watch in (self._watch_server, self._watch_worker):
            threading.Thread(target=watch, name="loom-embedded", daemon=True).start()

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return _start("worker", "--cpus", str(self._cpus), self.address, str(self.port))

    def _watch_server(self) -> None:
        status = self._server.wait()
        if not self._closing:
            self._broken(LoomError(f"the embedded server ended unexpectedly ({_end_text(status)})"))

    def _watch_worker(self) -> None:
        quick_ends = 0
        while True:
            began = time.monotonic()
            status = self._worker.wait()
            with self._lock:
                if self._closing:
                    return
                quick_ends = quick_ends + 1 if time.monotonic() - began < _SOON_S else 0
                if quick_ends >= _QUICK_ENDS:
                    break
                self._worker = self._start_worker()
        self._broken(
            LoomError(
                f"the embedded worker ends as soon as it starts ({_end_text(status)}); what it said stands on stderr"
            )
        )

    def let_go(self) -> None:
        """In a forked child: do not keep the processes alive when their client is gone."""
        for process in (self._worker, self._server):
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()

    def expect_end(self) -> None:
        """From now on the processes may end: nobody is alarmed, nothing is replaced."""
        with self._lock:
            self._closing = True

    def close(self) -> None:
        """End the processes; those that do not are killed."""
        self.expect_end()
        processes = (self._worker, self._server)
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        deadline = time.monotonic() + _LEAVE_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _let_go_of_all() -> None:
    for cluster in list(_clusters):
        cluster.let_go()


os.register_at_fork(after_in_child=_let_go_of_all)


def _start(what: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", f"loom.cli.{what}", "--until-stdin-closes", "--log-level", "warning", *arguments],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
        pass_fds=pass_fds,
        start_new_session=True,  # Ctrl-C is for the script, which closes its client in its own order
    )


def _import_path() -> list[str]:
    """Functions of modules travel by name: the worker must find the modules that this process finds."""
    return [os.path.abspath(entry) for entry in sys.path]


def _end_text(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
