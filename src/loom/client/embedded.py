"""A server and a worker of this machine that live as long as their client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from loom.errors import LoomError, LoomException
from loom.limits import MAX_CPUS, MAX_EXTRAS
from loom.resources import check_name, parse_size
from loom.resources import cpus as check_cpus
from loom.resources import resources as check_resources

_BACKLOG: Final = 64
_LEAVE_S: Final = 30.0  # how long the processes may take to end when asked to: a checkpoint may be on its way
_KILL_S: Final = 15.0  # and how long when they are not asked any more
_SOON_S: Final = 3.0  # a worker that ends earlier than this after its start has a lasting reason
_QUICK_ENDS: Final = 3  # so many and it is not started again
_QUICK_KILLS: Final = 10  # the same where a signal ended it: a task that kills workers does so CRASH_LIMIT times
_PLUGIN_STATUS: Final = 78  # of a worker that cannot load its plugins (plugins.chosen): it is not tried again
_MAX_NAMED: Final = MAX_EXTRAS - 2  # beside mem and gpus


_clusters: weakref.WeakSet[EmbeddedCluster] = weakref.WeakSet()


class EmbeddedCluster:
    """Its processes end when their standard input does, so they cannot outlive the process that made them.

    `options` are those of the worker, from `worker_options`; `key_file` is where they all find the key. A worker
    that dies is replaced. `broken` is called once, with the reason, where that does not help.
    """

    def __init__(
        self, options: list[str], key_file: Path, broken: Callable[[LoomException], None], *, tls: bool = False
    ) -> None:
        self.address = "127.0.0.1"
        self._options = options
        self._key_file = os.path.abspath(key_file)
        self._tls = ["--tls"] if tls else []
        self._broken = broken
        self._closing = False
        self._lock = threading.Lock()
        listening = socket.create_server((self.address, 0), backlog=_BACKLOG)
        try:
            self.port: int = listening.getsockname()[1]
            descriptor = listening.fileno()
            self._server = self._start("server", "--listening-fd", str(descriptor), pass_fds=(descriptor,))
        finally:
            listening.close()
        self._worker = self._start_worker()
        _clusters.add(self)
        for watch in (self._watch_server, self._watch_worker):
            threading.Thread(target=watch, name="loom-embedded", daemon=True).start()

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self._start("worker", *self._options, self.address, str(self.port))

    def _start(self, what: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        own = {"PYTHONPATH": os.pathsep.join(_import_path()), "LOOM_KEY_FILE": self._key_file}
        return subprocess.Popen(
            [
                *(sys.executable, "-m", f"loom.cli.{what}", "--until-stdin-closes", "--log-level", "warning"),
                *self._tls,
                *arguments,
            ],
            stdin=subprocess.PIPE,
            env={**os.environ, **own},
            pass_fds=pass_fds,
            start_new_session=True,  # Ctrl-C is for the script, which closes its client in its own order
        )

    def _watch_server(self) -> None:
        status = self._server.wait()
        if not self._closing:
            self._broken(LoomError(f"the embedded server ended unexpectedly ({_end_text(status)})"))

    def _watch_worker(self) -> None:
        quick_ends = {"signal": 0, "status": 0}
        while True:
            began = time.monotonic()
            status = self._worker.wait()
            with self._lock:
                if self._closing:
                    return
                if time.monotonic() - began < _SOON_S:
                    quick_ends["signal" if status < 0 else "status"] += 1
                else:
                    quick_ends = dict.fromkeys(quick_ends, 0)
                given_up = quick_ends["status"] >= _QUICK_ENDS or quick_ends["signal"] >= _QUICK_KILLS
                if given_up or status == _PLUGIN_STATUS:
                    break
                self._worker = self._start_worker()
        if status == _PLUGIN_STATUS:
            self._broken(LoomError("the embedded worker cannot load its plugins; why stands on stderr"))
            return
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
                process.send_signal(signal.SIGQUIT)  # the worker's supervisor kills it, and removes what it leaves
                try:
                    process.wait(_KILL_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def worker_options(
    cpus: int | None,
    gpus: int | None,
    mem: int | str | None,
    named: Mapping[str, int] | None,
    memory: int | str | None = None,
) -> list[str]:
    """What `loom-worker` is called with; LoomError where an argument is none that it takes."""
    n_cpus = check_cpus(cpus).cpus if cpus is not None else len(os.sched_getaffinity(0))
    options = ["--cpus", str(n_cpus)]
    if gpus is not None:
        if isinstance(gpus, bool) or not isinstance(gpus, int) or not 0 <= gpus <= MAX_CPUS:
            raise LoomError(f"gpus={gpus!r}: a worker has whole gpus, from 0 to {MAX_CPUS}")
        options += ["--gpus", str(gpus)]
    if mem is not None:
        options += ["--mem", str(parse_size(mem))]
    if memory is not None:
        options += ["--memory", str(parse_size(memory))]
    named = named or {}
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named):
        raise LoomError(f'resources={named!r:.200}: write names and amounts, such as {{"fpga": 2}}')
    if len(named) > _MAX_NAMED:
        raise LoomError(f"{len(named)} named resources: a worker has at most {_MAX_NAMED}")
    for name in named:
        check_name(name)
    check_resources(**named)
    for name, amount in named.items():
        options += ["--resource", f"{name}={amount}"]
    return options


def plugin_options(load: Sequence[str], load_native: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Plugins as `loom-worker` is told of them; LoomError where an argument is no list of names."""
    if isinstance(load, str) or not all(isinstance(name, str) for name in load):
        raise LoomError(f'load={load!r:.200}: write a list of modules, such as ["my_module"]')
    if isinstance(load_native, str | os.PathLike):
        raise LoomError(f'load_native={load_native!r:.200}: write a list of libraries, such as ["libmine.so"]')
    libraries = [os.path.abspath(path) for path in load_native]
    return [f"--load={name}" for name in load] + [f"--load-native={path}" for path in libraries]


def check_plugins(load: Sequence[str], load_native: Sequence[str | os.PathLike[str]]) -> None:
    """PluginError, which is a LoomError, where the worker could not load one of them."""
    from loom.plugins.chosen import Plugins  # few clients need these
    from loom.plugins.describing import describe

    libraries = tuple(os.path.abspath(os.fspath(path)) for path in load_native)
    describe(Plugins(tuple(load), libraries), _import_path())


def _let_go_of_all() -> None:
    for cluster in list(_clusters):
        cluster.let_go()


os.register_at_fork(after_in_child=_let_go_of_all)


def _import_path() -> list[str]:
    """Functions of modules travel by name: the worker must find the modules that this process finds."""
    return [os.path.abspath(entry) for entry in sys.path]


def _end_text(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
