"""The client: submits plans, waits, fetches. May be used from several threads."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from loom.client.future import Future
from loom.client.results import Payload, Results
from loom.core.client_events import (
    AskStats,
    CancelFutures,
    Close,
    FetchResults,
    ReleaseResults,
    StartTrace,
    Submit,
)
from loom.data.pack import rebuild, value_of, value_of_packed
from loom.errors import ClientClosed, InvalidPlan, LoomError
from loom.limits import CONNECT_TIMEOUT_S, MAX_PATH_BYTES
from loom.tasktypes.kinds import check_checkpoint
from loom.tasktypes.plan import EncodedPlan, checkpointed, collector_paused, encode_plan
from loom.tasktypes.saving import find_task, load_task
from loom.tasktypes.task import Reference, Task, is_dynamic
from loom.wire.keys import load_key

if TYPE_CHECKING:
    from loom.client.embedded import EmbeddedCluster

DEFAULT_PORT = 9010
_PATHS_A_QUESTION = 256  # a worker looks for them in its loop, some microseconds each

_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """A session with a server.

    `Client("host", 9010)` connects to a running server; `Client()` starts a server and a worker with all cores of this
    machine and takes them down when it is closed. What that worker offers can be said: `cpus`, `gpus`, `mem` (bytes, or
    text such as "4GiB"), and `resources`, amounts by name; `memory` (likewise) is what its objects may take of the
    memory before they go to disk; `load` and `load_native` are plugins for it, modules by name and shared libraries. A
    context manager.

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
        gpus: int | None = None,
        mem: int | str | None = None,
        resources: Mapping[str, int] | None = None,
        memory: int | str | None = None,
        load: Sequence[str] | None = None,
        load_native: Sequence[str | os.PathLike[str]] | None = None,
    ) -> None:
        if address is not None:
            offered: dict[str, object] = {"cpus": cpus, "gpus": gpus, "mem": mem, "resources": resources}
            offered |= {"memory": memory, "load": load, "load_native": load_native}
            for name in [name for name, value in offered.items() if value is not None]:
                option = "resource" if name == "resources" else name.replace("_", "-")
                raise LoomError(f"{name}= is for Client() without an address; workers of a server are given --{option}")
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
            from loom.client.embedded import EmbeddedCluster, check_plugins, plugin_options, worker_options

            options = worker_options(cpus, gpus, mem, resources, memory)
            options += plugin_options(load or (), load_native or ())
            if load or load_native:
                check_plugins(load or (), load_native or ())  # what cannot be loaded is said here, not on stderr
            self._cluster = EmbeddedCluster(options, self._results.broken)
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
        `load`: take the results of tasks whose `checkpoint_path` is there already from those files, and compute only
        what is missing; a worker looks for them before this returns.
        """
        if isinstance(tasks, Task):
            raise InvalidPlan("submit takes a collection of tasks; a single one goes to submit_one")
        try:
            wanted = list(tasks)
        except TypeError:
            raise InvalidPlan(f"submit takes a collection of tasks, not {tasks!r:.200}") from None
        self._check_process()  # before the lock: a thread of the parent may have held it when this process was forked
        loaded = self._find_checkpoints(wanted) if load else {}
        with self._lock, collector_paused():
            self._check_open()
            self._results.check()
            plan = encode_plan(wanted, self._next_number, self._number_of, loaded)
            self._next_number += plan.count
            self._results.expect(plan.numbers)
            for chunk in plan.chunks:
                self._engine.post(Submit(chunk))
            return self._futures(wanted, plan)

    def _futures(self, wanted: list[Task], plan: EncodedPlan) -> list[Future]:
        """One for each number: a second one, when it is collected, would release what the first one stands for."""
        futures = {number: Future(self, number) for number in dict.fromkeys(plan.numbers)}
        if plan.has_dynamic:
            for task, number in zip(wanted, plan.numbers, strict=True):
                futures[number].is_dynamic = is_dynamic(task)
        return [futures[number] for number in plan.numbers]

    def _find_checkpoints(self, wanted: list[Task]) -> dict[Task, Task]:
        """For each task whose checkpoint is there, the task that loads it. Asks a worker: they see the files."""
        self._check_open()
        saved = checkpointed(wanted, self._number_of)
        loaded: dict[Task, Task] = {}
        for start in range(0, len(saved), _PATHS_A_QUESTION):
            some = saved[start : start + _PATHS_A_QUESTION]
            paths = [check_checkpoint(task) for task in some]
            found = self.submit_one(find_task(paths)).gather()
            assert isinstance(found, bytes)
            for task, path, is_there in zip(some, paths, found, strict=True):
                if is_there:
                    loaded[task] = load_task(path)
        return loaded

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
        futures = _listed("wait", futures)  # kept alive: one that Python collects is released
        self._results.wait(self._numbers(futures))

    def wait_one(self, future: Future) -> None:
        self.wait((future,))

    def fetch(self, futures: Iterable[Future]) -> list[object]:
        """Wait for all, then bring their values here; they stay on the workers too."""
        futures = _listed("fetch", futures)  # kept alive: one that Python collects is released
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
        return value_of_packed(payload) if isinstance(payload, bytes) else value_of(rebuild(*payload))

    def fetch_one(self, future: Future) -> object:
        return self.fetch((future,))[0]

    def gather(self, futures: Iterable[Future]) -> list[object]:
        """`fetch`, then `release`."""
        futures = _listed("gather", futures)
        values = self.fetch(futures)
        self.release(futures)
        return values

    def gather_one(self, future: Future) -> object:
        return self.gather((future,))[0]

    def as_completed(self, futures: Iterable[Future]) -> Iterator[Future]:
        """Yield the futures as they become finished or failed; what is released meanwhile is passed over."""
        futures = _listed("as_completed", futures)
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
        futures = _listed("release", futures)
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

    def cancel(self, futures: Iterable[Future]) -> int:
        """Stop tasks whose results are not wanted any more, unless others need them; returns of how many futures.

        Such a future has failed at once, with the error "cancelled", and so does what is submitted with it later. Tasks
        that are over stay as they are. A future that is cancelled is to be released like any other.
        """
        self._check_process()
        futures = _listed("cancel", futures)
        with self._lock:
            self._check_open()
            checked = self._checked(futures)
            cancelled = self._results.cancel([future.task_id for future in checked])
            if cancelled:
                self._engine.post(CancelFutures(cancelled))
        return len(cancelled)

    def release_one(self, future: Future) -> None:
        self.release((future,))

    # -- The rest -----------------------------------------------------------------------------------------------------

    def get_stats(self) -> dict[str, int]:
        """Figures of the whole cluster: n_workers, n_cpus, n_data_objects, n_sessions, n_tasks."""
        self._check_open()
        self._results.check()
        return self._engine.ask_stats(AskStats())

    def set_trace(self, path: str | os.PathLike[str]) -> None:
        """Have server and workers write traces below the directory `path`, until this client is closed.

        A server writes one trace at a time, of all its clients: the last call counts.

        A relative path is taken from here; the directory is made at once. What is submitted from now on is in the trace
        when `gather` returns it. LoomError where the directory cannot be made.
        """
        self._check_open()
        directory = _trace_directory(path)
        with self._lock:
            self._check_open()
            self._engine.post(StartTrace(directory))

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
            if self._cluster is not None:
                self._engine.abandon(self._cluster.expect_end, self._cluster.close, terminate=True)
            else:
                self._engine.abandon(_nothing, _nothing, terminate=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client cannot be pickled; a function that is to run elsewhere must not use one")

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


def _trace_directory(path: str | os.PathLike[str]) -> bytes:
    """Make the directory; returns its absolute path."""
    try:
        if not os.fspath(path):
            raise ValueError("it has no name")
        directory = os.fsencode(os.path.abspath(path))
        os.makedirs(directory, exist_ok=True)
    except (OSError, TypeError, ValueError) as error:  # ValueError: a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise LoomError(f"the directory for traces {path!r:.200} cannot be made: {reason}") from None
    if len(directory) > MAX_PATH_BYTES:
        raise LoomError(f"the path of the directory for traces is longer than {MAX_PATH_BYTES} bytes")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise LoomError(f"the directory for traces {path!r:.200} is not writable by this user")
    return directory


def _listed(call: str, futures: Iterable[Future]) -> list[Future]:
    """The argument of a collective call."""
    if not isinstance(futures, Iterable):
        raise LoomError(
            f"{call} takes a collection of futures, not {futures!r:.200}; a single one has methods of its own"
        )
    return list(futures)


def _nothing() -> None:
    pass


@atexit.register
def _close_all() -> None:
    for client in list(_open_clients):
        client.close()
