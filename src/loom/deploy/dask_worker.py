"""The half of a DaskCluster that is in the process of a Dask worker: a Loom worker, and tasks that make room for it.

Dask runs a task of ours on each thread that the Loom worker is to have, so that it runs nothing else there. When the
last of them has begun the Loom worker is started, and all of them last as long as it does. So nothing is started while
Dask is still busy on those threads, and what is planned or retired by Dask sees them as what they are.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.utils import sync

from loom.deploy.hosted import HostedWorker
from loom.deploy.sealing import Receiver
from loom.errors import ConnectError, DeployError

_ASK_S: Final = 10.0
_POLL_S: Final = 0.1
_END_S: Final = 20.0


@dataclass(frozen=True)
class Order:
    """What to host: a worker `name` with so many cpus for `deployment`, by which the scheduler is asked, too.

    `options` are more of those of `loom-worker`.
    """

    deployment: str
    name: str
    cpus: int
    options: tuple[str, ...]


def hold(order: Order) -> str:
    """A Dask task: one thread for the Loom worker. Returns how that ended, empty where it was in good order."""
    return _hosting(order, get_worker()).take_part()


class Hosting(WorkerPlugin):  # type: ignore[misc]
    """One Loom worker in a Dask worker, from its first task to its last. As a plugin it hears when that ends."""

    def __init__(self, order: Order, worker: Worker) -> None:
        self._order = order
        self._worker = worker
        self._n_threads = 0
        self._lock = threading.Lock()
        self._full = threading.Event()
        self._ending = threading.Event()
        self._over = threading.Event()
        self._story = ""
        self._error: Exception | None = None
        self._hosted: HostedWorker | None = None

    def take_part(self) -> str:
        """With the thread of the caller, until it is over."""
        with self._lock:
            self._n_threads += 1
            is_first = self._n_threads == 1
            if self._n_threads == self._order.cpus:
                self._full.set()
        if is_first:
            self._lead()
        self._over.wait()
        if self._error is not None:
            raise self._error
        return self._story

    def _lead(self) -> None:
        try:
            self._host()
        except Exception as error:
            self._error = error
        finally:
            with _lock:
                _hostings.pop(self._order.name, None)
            self._over.set()
            if not self._ending.is_set():
                with suppress(Exception):  # Dask is ending, too
                    self._ask("left", worker=self._worker.address, plugin=self._order.name)
                    self._in_loop(lambda: self._worker.plugin_remove(name=self._order.name))

    def _host(self) -> None:
        self._in_loop(lambda: self._worker.plugin_add(plugin=self, name=self._order.name))
        self._ask("hold", worker=self._worker.address, plugin=self._order.name)
        while not self._full.wait(_POLL_S):
            if self._ending.is_set():
                return
        receiver = Receiver()
        key = receiver.open(self._ask("key", public=receiver.public, worker=self._worker.address)["sealed"])
        hosted = HostedWorker(self._order.name, self._order.cpus, self._locate, key, self._order.options)
        self._hosted = hosted
        try:
            while not hosted.wait(_POLL_S) and not self._ending.is_set():
                pass
            if not self._ending.is_set():
                self._story = hosted.story
        finally:
            hosted.close()

    def _locate(self) -> tuple[str, int]:
        found = self._ask("where")
        return found["host"], found["port"]

    def _ask(self, question: str, **more: object) -> dict[str, Any]:
        """ConnectError where there is no answer; where the scheduler knows nothing of us any more, all ends here."""
        scheduler = self._worker.scheduler
        answer = self._in_loop(lambda: getattr(scheduler, self._order.deployment)(question=question, **more))
        if not isinstance(answer, dict):
            self._ending.set()
            raise DeployError("the Dask scheduler does not know this deployment any more")
        if "error" in answer:
            raise ConnectError(answer["error"])
        return answer

    def _in_loop(self, call: Callable[[], Any]) -> Any:
        async def called() -> Any:
            return await call()

        return sync(self._worker.loop, called, callback_timeout=_ASK_S)

    async def teardown(self, worker: Worker) -> None:
        """The Dask worker ends, or all of ours does."""
        self._ending.set()
        await asyncio.to_thread(self._over.wait, _END_S)


_lock = threading.Lock()
_hostings: dict[str, Hosting] = {}


def _hosting(order: Order, worker: Worker) -> Hosting:
    """The one that the tasks of that worker share. Dask's threads: there may be several Dask workers in a process."""
    with _lock:
        return _hostings.setdefault(order.name, Hosting(order, worker))
