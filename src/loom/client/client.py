"""The client: submits plans, waits, fetches. May be used from several threads."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from loom.client.arguments import listed, trace_directory
from loom.client.future import Future
from loom.client.names import Names, check_name, check_names, names_by_number, names_within
from loom.client.results import Payload, Results
from loom.client.sessions import NamedSession, describe_process, listed_sessions
from loom.core.client_events import (
    AskStats,
    CancelFutures,
    Close,
    FetchResults,
    Leave,
    ReleaseResults,
    StartTrace,
    Submit,
)
from loom.data.pack import rebuild, value_of, value_of_packed
from loom.errors import ClientClosed, InvalidPlan, LoomError, LoomException
from loom.limits import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S
from loom.tasktypes.kinds import check_checkpoint
from loom.tasktypes.plan import EncodedPlan, checkpointed, collector_paused, encode_plan
from loom.tasktypes.saving import find_task, load_task
from loom.tasktypes.task import Reference, Task, is_dynamic

if TYPE_CHECKING:
    from loom.deploy.cluster import Cluster

_log = logging.getLogger(__name__)

DEFAULT_PORT = 9010
_PATHS_A_QUESTION = 256  # a worker looks for them in its loop, some microseconds each

_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """A session with a server.

    `Client("host", 9010)` connects to a running server, `Client(cluster)` to that of a cluster of loom.deploy.
    `Client("ray://...")` and `Client("dask://...")` start one on that cluster of Ray or Dask, and `Client()` a server
    and a worker with all cores of this machine; they take them down when they are closed. What the worker of `Client()`
    offers can be said: `cpus`, `gpus`, `mem` (bytes, or text such as "4GiB"), and `resources`, amounts by name;
    `memory` (likewise) is what its objects may take of the memory before they go to disk; `load` and `load_native` are
    plugins for it, modules by name and shared libraries. A context manager.

    `key_file` is the file with the user's key, instead of the one that `loom key show-path` prints. Links to other
    machines are encrypted; `tls` has those within this machine encrypted, too, and with `insecure` none is where the
    other end does not ask for it either.

    `session` names a session that outlives this client, with the results in it that were given names: whoever uses the
    same name later takes it up (docs/sessions.md). One client at a time uses it; `take_over` takes it away from another
    one.

    Raises ConnectError within `connect_timeout_s` seconds where there is no server, at once where the session is in use
    by another client, and KeyRefused where the server belongs to another user's key.
    """

    def __init__(
        self,
        address: str | Cluster | None = None,
        port: int = DEFAULT_PORT,
        *,
        session: str | None = None,
        take_over: bool = False,
        key_file: str | os.PathLike[str] | None = None,
        tls: bool = False,
        insecure: bool = False,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        cpus: int | None = None,
        gpus: int | None = None,
        mem: int | str | None = None,
        resources: Mapping[str, int] | None = None,
        memory: int | str | None = None,
        load: Sequence[str] | None = None,
        load_native: Sequence[str | os.PathLike[str]] | None = None,
    ) -> None:
        offered: dict[str, object] = {"cpus": cpus, "gpus": gpus, "mem": mem, "resources": resources}
        offered |= {"memory": memory, "load": load, "load_native": load_native}
        if address is None and session is not None:
            raise LoomError(
                "session= is for a server that outlives this client; one of Client() without an address does not: start"
                " `loom server`, and give its address"
            )
        if take_over and session is None:
            raise LoomError("take_over= is for a named session: Client(address, port, session=..., take_over=True)")
        self._pid = os.getpid()
        self._lock = threading.RLock()  # what is posted to the I/O thread is posted in order
        self._collected: deque[int] = deque()
        self._results = Results()
        self._session_name = "" if session is None else check_name(session, "session")
        self._farewell = Leave() if self._session_name else Close(terminate=address is None)
        self._closed = False
        from loom.client.clusters import find_server  # an event loop and more, which building plans does without

        place, trust, self._cluster = find_server(address, port, offered, key_file, tls, insecure)
        from loom.client.engine import Engine  # while the processes of a cluster start

        if self._cluster is not None:
            self._cluster.on_broken(self._results.broken)
        own = (self._session_name, describe_process(), take_over)
        self._engine = Engine(place, trust, self._results, self._collected, *own)
        try:
            opened = self._engine.start(connect_timeout_s)
        except BaseException:
            self._end(self._farewell)
            raise
        self._session = opened.session
        self._next_number = opened.next_number
        self._names = Names(opened.names)
        _open_clients.add(self)
        self._shared = None if address is None or isinstance(address, str) else address
        for cluster in (self._cluster, self._shared):
            if cluster is not None:
                cluster.used_by(self)

    # -- Submitting ---------------------------------------------------------------------------------------------------

    def submit(
        self, tasks: Iterable[Task], load: bool = False, names: Sequence[str | None] | None = None
    ) -> list[Future]:
        """Submit tasks with everything they depend on; returns a future for each, at once.

        A task that several of them share runs once. Raises InvalidPlan, naming the culprit, for what is no plan: a
        cycle, an input that is neither task nor future, a future that was released or belongs to another client.
        `load`: take the results of tasks whose `checkpoint_path` is there already from those files, and compute only
        what is missing; a worker looks for them before this returns. `names`: one for each task, or None; in a named
        session only, which keeps what has a name until it is released or gathered, by whichever client. LoomError where
        a name is taken.
        """
        if isinstance(tasks, Task):
            raise InvalidPlan("submit takes a collection of tasks; a single one goes to submit_one")
        try:
            wanted = list(tasks)
        except TypeError:
            raise InvalidPlan(f"submit takes a collection of tasks, not {tasks!r:.200}") from None
        self._check_process()  # before the lock: a thread of the parent may have held it when this process was forked
        if names is not None:
            self._check_named("names=")
            names = check_names(names, wanted)
        loaded = self._find_checkpoints(wanted) if load else {}
        with self._lock, collector_paused():
            self._check_open()
            self._results.check()
            self._names.check_free(names or ())
            plan = encode_plan(wanted, self._next_number, self._number_of, loaded)
            named = names_by_number(plan, names) if names is not None else []
            self._next_number += plan.count
            self._results.expect(plan.numbers)
            for chunk in plan.chunks:
                self._engine.post(Submit(chunk, names_within(chunk, named)))
            return self._futures(wanted, plan, named)

    def _futures(self, wanted: list[Task], plan: EncodedPlan, named: list[tuple[int, str]]) -> list[Future]:
        """One for each number: a second one, when it is collected, would release what the first one stands for."""
        futures = {number: Future(self, number) for number in dict.fromkeys(plan.numbers)}
        for number, name in named:
            futures[number].name = name
            self._names.add(name, futures[number])
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

    def submit_one(self, task: Task, load: bool = False, name: str | None = None) -> Future:
        """Submit one task with everything it depends on. `load` and `name` as in `submit`."""
        if not isinstance(task, Task):
            raise InvalidPlan(f"submit_one takes a Task, not {task!r:.200}")
        return self.submit((task,), load, None if name is None else (name,))[0]

    def future(self, name: str) -> Future:
        """The future of that name in a named session, whichever client has submitted it; LoomError where there is none.

        It is there until somebody releases or gathers it: letting it go does not, as it does with others.
        """
        self._check_named("future()")
        with self._lock:
            number = self._names.number(name)
            future = self._names.future(name)
            if future is None:
                future = Future(self, number, name=name)
                self._names.add(name, future)
            return future

    def future_names(self) -> list[str]:
        """The names of all results in a named session, in order."""
        self._check_named("future_names()")
        with self._lock:
            return self._names.listed()

    def _number_of(self, reference: Reference) -> int:
        if not isinstance(reference, Future) or reference._client is not self:
            raise InvalidPlan(f"{reference!r:.200} belongs to another client: gather it there, pass on its value")
        if reference._released:
            raise InvalidPlan(f"{reference!r} was released or gathered, so it cannot be an input any more")
        return reference.task_id

    # -- Waiting and fetching -----------------------------------------------------------------------------------------

    def wait(self, futures: Iterable[Future]) -> None:
        """Block until all are finished. Raises TaskFailed as soon as one of them has failed."""
        futures = listed("wait", futures)  # kept alive: one that Python collects is released
        self._results.wait(self._numbers(futures))

    def wait_one(self, future: Future) -> None:
        self.wait((future,))

    def fetch(self, futures: Iterable[Future]) -> list[object]:
        """Wait for all, then bring their values here; they stay on the workers too."""
        futures = listed("fetch", futures)  # kept alive: one that Python collects is released
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
        futures = listed("gather", futures)
        values = self.fetch(futures)
        self.release(futures)
        return values

    def gather_one(self, future: Future) -> object:
        return self.gather((future,))[0]

    def as_completed(self, futures: Iterable[Future]) -> Iterator[Future]:
        """Yield the futures as they become finished or failed; what is released meanwhile is passed over."""
        futures = listed("as_completed", futures)
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
        futures = listed("release", futures)
        with self._lock:
            futures = self._checked(futures)
            released = []
            for future in futures:
                if future._released:
                    continue
                if future.name is not None:
                    self._check_open()  # else it would stay in its session
                    self._names.forget(future.name)
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
        futures = listed("cancel", futures)
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
        """Figures of the whole cluster: n_workers, n_cpus, n_data_objects, n_sessions, n_tasks.

        While the server is away this waits for it. Raises ConnectionLost where it does not come back.
        """
        self._check_open()
        self._results.check()
        return self._engine.ask_stats(AskStats())

    def set_trace(self, path: str | os.PathLike[str]) -> None:
        """Have server and workers write traces below the directory `path`, until this client is closed.

        A server writes one trace at a time, of all its clients: the last call counts. One that is started again goes on
        with it as soon as this client is back.

        A relative path is taken from here; the directory is made at once. What is submitted from now on is in the trace
        when `gather` returns it. LoomError where the directory cannot be made.
        """
        self._check_open()
        directory = trace_directory(path)
        with self._lock:
            self._check_open()
            self._engine.post(StartTrace(directory))

    def sessions(self) -> list[NamedSession]:
        """The named sessions of the server, those in use and those that wait to be taken up, in order."""
        self._check_open()
        return listed_sessions(self._engine.ask_sessions().sessions)

    def end_session(self, name: str | None = None) -> None:
        """End this client's session, named or not, with everything in it, and close; or end the named session `name`.

        Whoever uses that one is told that it is over. LoomError where there is none of that name, or where the server
        does not acknowledge the end of this client's own within some seconds.
        """
        self._check_open()
        if name is not None and check_name(name, "session") != self._session_name:
            if not self._engine.ask_sessions(end=name).ended:
                raise LoomError(f"there is no session named {name!r}")
            return
        failed = self._end(Close(terminate=self._cluster is not None))
        if failed is not None and self._session_name:
            raise LoomError(f"the session {self._session_name!r} may not have ended: {failed}")

    def detach(self, timeout_s: float | None = None) -> None:
        """Leave a named session as it is, and close: its tasks go on, what has a name is kept.

        Returns when everything that was said is acknowledged, so that a server with a journal has it on disk.
        LoomError, with the reason as far as it is known, where that takes longer than `timeout_s`; the client is closed
        then, too, and what it has said last may be missing.
        """
        self._check_named("detach()")
        if timeout_s is not None and timeout_s < 0:
            raise LoomError(f"timeout_s={timeout_s!r}: write seconds, or None to wait as long as it takes")
        failed = self._end(Leave(), timeout_s)
        if failed is not None:
            raise LoomError(f"the session {self._session_name!r} may not have all that was said: {failed}")

    def close(self) -> None:
        """End the session: its tasks are stopped, its objects dropped. Twice is once.

        A named session stays as it is (see `detach`); what was said is acknowledged when this returns, or after some
        seconds a warning is logged that it was not. `end_session` ends it.
        """
        failed = self._end(self._farewell)
        if failed is not None and self._session_name and not self._engine.said_all:
            _log.warning("the session %r may not have all that was said: %s", self._session_name, failed)

    def terminate(self) -> None:
        """Stop the server and all its workers, and close; a cluster of loom.deploy is closed, too.

        Named sessions stay in the server's journal, if there is one.
        """
        self._check_open()
        if self._shared is not None:
            self._shared.expect_end()
        self._end(Close(terminate=True))
        if self._shared is not None:
            self._shared.close()

    def _end(self, command: Close | Leave, timeout_s: float | None = CLOSE_TIMEOUT_S) -> LoomException | None:
        """Returns why the server has not acknowledged it, None where it has."""
        if self._pid != os.getpid():
            return None
        with self._lock:
            if self._closed:
                return None
            self._closed = True
            if self._cluster is not None:
                self._cluster.expect_end()
            failed = self._engine.close(command, timeout_s)
            if self._cluster is not None:
                self._cluster.close()
            return failed

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and hasattr(self, "_engine") and self._pid == os.getpid():
            if self._cluster is not None:
                self._engine.abandon(self._cluster.expect_end, self._cluster.close, self._farewell)
            else:
                self._engine.abandon(_nothing, _nothing, self._farewell)

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

    def _check_named(self, what: str) -> None:
        self._check_open()
        if not self._session_name:
            raise LoomError(
                f"{what} is for a named session, which outlives its client: Client(address, port, session=...)"
            )

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
