"""A server and workers of this machine, as child processes."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from loom.deploy.keeper import check_wanted
from loom.deploy.nodes import Node, Offer
from loom.deploy.offers import check_plugins, memory_option, offered, plugin_options
from loom.deploy.processes import end_processes, start_process
from loom.deploy.serving import KeptCluster
from loom.executors.deaths import NOT_LOADED_STATUS, end_text

_SOON_S: Final = 3.0  # a worker that ends earlier than this after its start has a lasting reason
_QUICK_ENDS: Final = 3  # so many and it is not started again
_QUICK_KILLS: Final = 10  # the same where a signal ended it: a task that kills workers does so CRASH_LIMIT times
_LOOPBACK: Final = "127.0.0.1"
_QUIETLY: Final = ("--log-level", "warning")


class LocalWorkers:
    """The provider of worker processes. `lost_hope` is called once, where workers end as soon as they start."""

    what = "worker"

    def __init__(
        self,
        arguments: Sequence[str],
        key_file: str,
        offer: Offer,
        ended: Callable[[], None],
        lost_hope: Callable[[str], None],
    ) -> None:
        self.offer = offer
        self._arguments = arguments
        self._key_file = key_file
        self._ended = ended
        self._lost_hope = lost_hope
        self._numbers = itertools.count(1)
        self._processes: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self._quick_ends = {"signal": 0, "status": 0}
        self._no_hope = ""

    def launch(self, count: int) -> None:
        if self._no_hope:
            return
        for _ in range(count):
            name = f"{socket.gethostname()}:{os.getpid()}-{next(self._numbers)}"
            environment = {"LOOM_KEY_FILE": self._key_file}
            process = start_process("worker", ["--name", name, *self._arguments], environment=environment)
            self._processes[name] = process, time.monotonic()
            threading.Thread(target=self._watch, args=(process,), name="loom-watch", daemon=True).start()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._ended()

    def nodes(self) -> list[Node]:
        found = []
        for name, (process, began) in list(self._processes.items()):
            status = process.poll()
            if status is None:
                found.append(Node(name, "running", (name,)))
                continue
            del self._processes[name]
            self._count_end(status, time.monotonic() - began)
            found.append(Node(name, "ended", (name,), end_text(status) if status else ""))
        return found

    def _count_end(self, status: int, lived_s: float) -> None:
        """Several that end as soon as they have started do so for a reason that does not go away."""
        if lived_s >= _SOON_S:
            self._quick_ends = dict.fromkeys(self._quick_ends, 0)
        elif status:
            self._quick_ends["signal" if status < 0 else "status"] += 1
        if status == NOT_LOADED_STATUS:
            self._give_up("the worker cannot load its plugins; why stands on stderr")
        elif self._quick_ends["status"] >= _QUICK_ENDS or self._quick_ends["signal"] >= _QUICK_KILLS:
            self._give_up(f"the worker ends as soon as it starts ({end_text(status)}); what it said stands on stderr")

    def _give_up(self, reason: str) -> None:
        if not self._no_hope:
            self._no_hope = reason
            self._lost_hope(reason)

    def end(self, nodes: Sequence[Node]) -> None:
        end_processes([self._processes[node.id][0] for node in nodes if node.id in self._processes])

    def processes(self) -> list[subprocess.Popen[bytes]]:
        return [process for process, _ in self._processes.values()]

    def close(self) -> None:
        end_processes(self.processes())


class LocalCluster(KeptCluster):
    """A server and `n_workers` workers on this machine, each with `cpus` cores: as many as there are for each of them.

    It is what `Client()` starts, with one worker. What workers offer besides: `gpus`, `mem` (bytes, or text such as
    "4GiB"), `resources`, amounts by name; `memory` is what their objects may take of the memory before they go to disk;
    `load` and `load_native` are plugins for them, modules by name and shared libraries. With `journal`, a file, the
    next cluster with the same file goes on from there. Nodes are processes; they end with this one, however it ends.
    """

    title = "local cluster"

    def __init__(
        self,
        n_workers: int = 1,
        cpus: int | None = None,
        *,
        gpus: int | None = None,
        mem: int | str | None = None,
        resources: Mapping[str, int] | None = None,
        memory: int | str | None = None,
        load: Sequence[str] | None = None,
        load_native: Sequence[str | os.PathLike[str]] | None = None,
        journal: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        tls: bool = False,
        progress: bool | None = None,
    ) -> None:
        super().__init__(check_wanted(n_workers, n_workers), key_file, progress, tls=tls)
        if cpus is None:
            cpus = max(1, len(os.sched_getaffinity(0)) // max(1, n_workers))
        extras, options = offered(cpus, gpus, mem, resources)
        self._offer = Offer(cpus, extras)
        self._options = [*options, *memory_option(memory), *plugin_options(load or (), load_native or ())]
        if load or load_native:
            check_plugins(load or (), load_native or ())  # what cannot be loaded is said here, not on stderr
        self._journal = [] if journal is None else ["--journal", os.path.abspath(journal)]
        self._tls = ["--tls"] if tls else []
        self._workers: LocalWorkers | None = None

    def _start(self) -> None:
        port = self._start_server(_LOOPBACK, 0, [*_QUIETLY, *self._tls, *self._journal])
        arguments = [*_QUIETLY, *self._tls, *self._options, _LOOPBACK, str(port)]
        self._workers = LocalWorkers(arguments, str(self._key_file), self._offer, self._wake, self._lose_hope)
        self._keep(self._workers, 0.0)
        self._go_on_keeping()

    def _lose_hope(self, reason: str) -> None:
        if not self._ending:
            self._break(reason)

    def _close(self) -> None:
        self.expect_end()
        workers = [] if self._workers is None else self._workers.processes()
        servers = [] if self._server is None else [self._server]
        if self._journal:  # the server is to write down that they have gone: the next one waits for those it had
            end_processes(workers)
        end_processes([*workers, *servers])
