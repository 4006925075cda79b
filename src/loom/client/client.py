"""The client: submits plans, waits, fetches. May be used from several threads."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from loom.client.future import Future
from loom.client.results import Payload, Results
from loom.core.client import AskStats, Close, FetchResults, ReleaseResults, Submit
from loom.data.pack import from_packed, rebuild, value_of
from loom.errors import ClientClosed, InvalidPlan, LoomError
from loom.limits import CONNECT_TIMEOUT_S
from loom.tasktypes.plan import encode_plan
from loom.tasktypes.task import Reference, Task
from loom.wire.keys import load_key

if TYPE_CHECKING:
    from loom.client.embedded import EmbeddedCluster

DEFAULT_PORT = 9010

_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """A session with a server.

    `Client("host", 9010)` connects to a running server; `Client()` starts a server and a worker with all cores of this
    machine and takes them down when it is closed. `cpus` (embedded only): cores of that worker. A context manager.

    Raises ConnectError within `connect_timeout_s` seconds where there is no server, KeyRefused at once where the server
    belongs to another user's key.
    """

    def __init__(
        self,
        address: str | None = None,
        port: int = DEFAULT_PORT,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        cpus: int | None = None,
    ) -> None:
        if address is not None and cpus is not None:
            raise LoomError("cpus= is for Client() without an address; workers of a server are given --cpus")
        self._pid = os.getpid()
        self._lock = threading.RLock()  # what is posted to the I/O thread is posted in order
        self._collected: deque[int] = deque()
        self._results = Results()
        self._next_number = 0
        self._closed = False
        from loom.client.engine import Engine  # an event loop and more, which building plans does without

        key = load_key()
        self._cluster: EmbeddedCluster | None = None
        if address is None:
            from loom.client.embedded import EmbeddedCluster

            self._cluster = EmbeddedCluster(cpus, self._results.broken)
            address, port = self._cluster.address, self._cluster.port
        self._engine = Engine(address, port, key, self._results, self._collected)
        try:
            self._session = self._engine.start(connect_timeout_s)
        except BaseException:
            self._end(terminate=False)
            raise
        _open_clients.add(self)

    # -- Submitting ---------------------------------------------------------------------------------------------------

    def submit(self, tasks: Iterable[Task], load: bool = False) -> list[Future]:
        """Submit tasks with everything they depend on; returns a future for each, at once.

        A task that several of them share runs once. Raises InvalidPlan, naming the culprit, for what is no plan: a
        cycle, an input that is neither task nor future, a future that was released or belongs to another client.
        `load`: take what earlier runs have left at `checkpoint_path` (this version has no checkpoints: refused).
        """
        if isinstance(tasks, Task):
            raise InvalidPlan("submit takes a collection of tasks; a single one goes to submit_one")
        if load:
            raise LoomError("submit(load=True): this version of Loom has no checkpoints")
        try:
            wanted = list(tasks)
        except TypeError:
            raise InvalidPlan(f"submit takes a collection of tasks, not {tasks!r:.200}") from None
        self._check_process()  # before the lock: a thread of the parent may have held it when this process was forked
        with self._lock:
            self._check_open()
            self._results.check()
            plan = encode_plan(wanted, self._next_number, self._number_of)
            self._next_number += plan.count
            self._results.expect(plan.numbers)
            for chunk in plan.chunks:
                self._engine.post(Submit(chunk))
        # one for each number: a second one, when it is collected, would release what the first one stands for
        futures = {number: Future(self, number) for number in dict.fromkeys(plan.numbers)}
        return [futures[number] for number in plan.numbers]

    def submit_one(self, task: Task, load: bool = False) -> Future:
        """Submit one task with everything it depends on."""
        if not isinstance(task, Task):
            raise InvalidPlan(f"submit_one takes a Task, not {task!r:.200}")
        return self.submit((task,), load)[0]

    def _number_of(self, reference: Reference) -> int:
        if not isinstance(reference, Future) or reference._client is not self:
            raise InvalidPlan(f"{reference!r:.200} belongs to another client: gather it there, pass on its value")
        if reference._released:
            raise InvalidPlan(f"{reference!r} was released or gathered, so it cannot be an input any more")
        return reference.task_id

    # -- Waiting and fetching -----------------------------------------------------------------------------------------

    def wait(self, futures: Iterable[Future]) -> None:
        """Block until all are finished. Raises TaskFailed as soon as one of them has failed."""
        futures = list(futures)  # kept alive: one that Python collects is released
        self._results.wait(self._numbers(futures))

    def wait_one(self, future: Future) -> None:
        self.wait((future,))

    def fetch(self, futures: Iterable[Future]) -> list[object]:
        """Wait for all, then bring their values here; they stay on the workers too."""
        futures = list(futures)  # kept alive: one that Python collects is released
        numbers = self._numbers(futures)
        self._results.wait(numbers)
        remote = [n for n in dict.fromkeys(numbers) if self._results.local(n) is None]
        payloads: dict[int, Payload] = {}
        if remote:
            ticket = self._results.ticket(remote)
            self._engine.post(FetchResults(remote))
            payloads = self._results.redeem(ticket)
        values: dict[int, object] = {}
        for number in numbers:
            if number not in values:
                values[number] = self._value(number, payloads)
        return [values[number] for number in numbers]

    def _value(self, number: int, payloads: dict[int, Payload]) -> object:
        payload = payloads[number] if number in payloads else self._results.local(number)
        if payload is None:
            raise LoomError(f"the result of task {number} was released by another thread while it was fetched")
        return value_of(from_packed(payload) if isinstance(payload, bytes) else rebuild(*payload))

    def fetch_one(self, future: Future) -> object:
        return self.fetch((future,))[0]

    def gather(self, futures: Iterable[Future]) -> list[object]:
        """`fetch`, then `release`."""
        futures = list(futures)
        values = self.fetch(futures)
        self.release(futures)
        return values

    def gather_one(self, future: Future) -> object:
        return self.gather((future,))[0]

    def as_completed(self, futures: Iterable[Future]) -> Iterator[Future]:
        """Yield the futures as they become finished or failed; what is released meanwhile is passed over."""
        futures = list(futures)
        by_number: dict[int, list[Future]] = {}
        for future, number in zip(futures, self._numbers(futures), strict=True):
            by_number.setdefault(number, []).append(future)
        return self._yield_completed(by_number)

    def _yield_completed(self, by_number: dict[int, list[Future]]) -> Iterator[Future]:
        watcher = self._results.watch(list(by_number))
        try:
            while (over := self._results.next_over(watcher)) is not None:
                yield from by_number[over]
        finally:
            self._results.unwatch(watcher)

    # -- Releasing ----------------------------------------------------------------------------------------------------

    def release(self, futures: Iterable[Future]) -> None:
        """Give results up; tasks that are not finished are stopped unless somebody else needs them."""
        self._check_process()
        with self._lock:
            futures = self._checked(futures)
            released = []
            for future in futures:
                if not future._released:
                    future._released = True
                    released.append(future.task_id)
            if released and not self._closed:
                self._results.forget(released)
                self._engine.post(ReleaseResults(released))

    def release_one(self, future: Future) -> None:
        self.release((future,))

    # -- The rest -----------------------------------------------------------------------------------------------------

    def get_stats(self) -> dict[str, int]:
        """Figures of the whole cluster: n_workers, n_cpus, n_data_objects, n_sessions, n_tasks."""
        self._check_open()
        return self._engine.ask_stats(AskStats())

    def close(self) -> None:
        """End the session: its tasks are stopped, its objects dropped. Twice is once."""
        self._end(terminate=False)

    def terminate(self) -> None:
        """Stop the server and all its workers, and close."""
        self._check_open()
        self._end(terminate=True)

    def _end(self, terminate: bool) -> None:
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._cluster is not None:
                self._cluster.expect_end()
            self._engine.close(Close(terminate or self._cluster is not None))
            if self._cluster is not None:
                self._cluster.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and hasattr(self, "_engine") and self._pid == os.getpid():
            self._engine.abandon(self._cluster.close if self._cluster is not None else _nothing)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- Checks -------------------------------------------------------------------------------------------------------

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ClientClosed(
                "this process was forked from the one that made the client, and the client did not come along:"
                " make a new Client here"
            )

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise ClientClosed("the client is closed")

    def _checked(self, futures: Iterable[Future]) -> Sequence[Future]:
        futures = list(futures)
        for future in futures:
            if not isinstance(future, Future):
                raise LoomError(f"{future!r:.200} is no future")
            if future._client is not self:
                raise LoomError(f"{future!r} belongs to another client")
        return futures

    def _numbers(self, futures: Iterable[Future]) -> list[int]:
        self._check_open()
        checked = self._checked(futures)
        for future in checked:
            if future._released:
                raise LoomError(f"{future!r} was released or gathered: its result is gone")
        return [future.task_id for future in checked]


def _nothing() -> None:
    pass


@atexit.register
def _close_all() -> None:
    for client in list(_open_clients):
        client.close()
