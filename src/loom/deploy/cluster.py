"""What all clusters have in common."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from loom.deploy.saying import Says, counted
from loom.deploy.status import Status, WorkerStatus
from loom.errors import ClientClosed, ConnectError, LoomError, LoomException
from loom.net.places import Place
from loom.net.trust import Trust

if TYPE_CHECKING:
    from loom.deploy.asking import Asker
    from loom.deploy.keeper import Keeper
    from loom.deploy.nodes import Node
    from loom.messages import Load, WorkerLoad

WAIT_S: Final = 300.0  # how long workers may take to come: a host or a batch system may be slow
_LOOK_S: Final = 0.1  # how often is looked whether they are there
_IDLE_S: Final = 30.0
_MOST_NAMED: Final = 5  # of those that have not come

_log = logging.getLogger(__name__)

_started: weakref.WeakSet[Cluster] = weakref.WeakSet()


class Client(Protocol):
    """What a cluster knows of those that use it."""

    def close(self) -> None: ...


class Connection(NamedTuple):
    """How a client reaches the server of a cluster."""

    place: Place
    trust: Trust


class Cluster(ABC):
    """A server, and workers that come and go: `Client(cluster)` uses it, as many clients as there are.

    A context manager; `close` ends everything and leaves nothing behind, and is called when Python ends where nobody
    has. The number of workers is given, or changed by `scale`; `adapt` lets it follow what waits. What one "node" is
    depends on the kind of cluster: a process, a batch job, an actor of another engine.
    """

    title = "cluster"

    def __init__(self, progress: bool | None = None) -> None:
        """`progress`: print what is done to stderr; None: where that is a terminal."""
        self._says = Says(self.title, progress)
        self._asker: Asker | None = None
        self._state_lock = threading.RLock()
        self._close_lock = threading.RLock()  # who closes while another one does returns when that is done
        self._is_started = self._is_closed = False
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self._pid = os.getpid()

    # -- For users ----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the server and what was asked for; twice is once. Raises DeployError with what the engine said."""
        failed: BaseException | None = None
        with self._state_lock:
            if self._is_closed:
                raise LoomError(f"this {self.title} is closed: make a new one")
            if not self._is_started:
                try:
                    self._start()
                    self._is_started = True
                    _started.add(self)
                except BaseException as error:
                    self._is_closed = True
                    failed = error
        if failed is not None:
            self._end()
            raise failed
        return self

    def scale(self, n: int) -> None:
        """From now on there are to be `n` nodes. Those that are too many hand over what they have, and go."""
        self.adapt(n, n)

    @abstractmethod
    def adapt(self, minimum: int, maximum: int, idle_s: float = _IDLE_S) -> None:
        """From now on there are as many nodes as what waits is worth, between the two. One that had nothing to do for
        `idle_s` seconds is let go. LoomError where these are no such numbers.
        """

    def status(self) -> Status:
        """What is there now; `print(cluster.status())` is a table."""
        if self._is_closed:
            return Status("", 0, problems=list(self._says.problems))
        load: Load | None = None
        if self._is_started:
            try:
                load = self._ask().load()
            except ClientClosed:
                pass  # meanwhile
            except LoomException as error:
                self._says.complain(f"the server does not answer: {error}")
        n_wanted, nodes = self._nodes()
        n_waiting = sum(line.count for line in load.waiting) if load is not None else 0
        return Status(self.address, n_wanted, _worker_states(nodes, load), n_waiting, list(self._says.problems))

    def wait(self, n_workers: int = 1, timeout_s: float = WAIT_S) -> None:
        """Until so many workers are at the server. LoomError after the time, with what went wrong meanwhile."""
        self._check_started()
        deadline = time.monotonic() + timeout_s
        said = -1
        while True:
            n_there = self._n_workers(max(_LOOK_S, deadline - time.monotonic()))
            if n_there != said:
                self._says.say(f"{n_there} of {counted(n_workers, 'worker')} there")
                said = n_there
            if n_there >= n_workers:
                return
            if time.monotonic() > deadline:
                raise LoomError(f"{n_there} of {n_workers} workers came within {timeout_s:g} s{self._why_not()}")
            self._check_alive()
            time.sleep(_LOOK_S)

    def _why_not(self) -> str:
        """What is to be said where workers do not come, a line each."""
        status = self.status()
        absent = [worker for worker in status.workers if worker.state in ("waiting", "starting")]
        lines = [f"{worker.name} is {worker.state} {worker.reason}".rstrip() for worker in absent[:_MOST_NAMED]]
        lines += [f"and {len(absent) - _MOST_NAMED} more"] if len(absent) > _MOST_NAMED else []
        lines += status.problems
        if not lines:
            lines = [f"there are to be {counted(status.n_wanted, 'node')}; scale(n) asks for others"]
        return "".join(f"\n  {line}" for line in lines)

    def _n_workers(self, timeout_s: float) -> int:
        try:
            return sum(not worker.leaving for worker in self._ask().load(timeout_s).workers)
        except ConnectError as error:  # it may be started again, where it is not broken
            self._check_alive()
            self._says.complain(f"the server does not answer: {error}")
            return 0

    @property
    @abstractmethod
    def address(self) -> str:
        """host:port of the server; empty where it is not started."""

    @abstractmethod
    def connection(self) -> Connection:
        """For clients; starts the cluster where nobody has."""

    def close(self) -> None:
        """End everything, after the clients that use it. Twice is once."""
        if self._pid != os.getpid():  # before the locks: a thread of the parent may have held them
            return
        for client in list(self._clients):  # they would look for their server else, and wait for it
            client.close()
        with self._close_lock:
            with self._state_lock:
                if self._is_closed:
                    return
                self._is_closed = True
            if self._is_started:
                self._end()

    def _end(self) -> None:
        """Without the lock of the state: a thread of ours that is waited for may be about to ask something."""
        if self._asker is not None:
            self._asker.close()
        self._close()

    def used_by(self, client: Client) -> None:
        """The client is closed before this cluster is."""
        self._clients.add(client)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"at {self.address}" if self._is_started else "not started"
        return f"<{type(self).__name__}, {state}>"

    # -- For kinds of clusters ----------------------------------------------------------------------------------------

    @abstractmethod
    def _start(self) -> None:
        """Begin. Where this raises, `_close` is called."""

    @abstractmethod
    def _close(self) -> None:
        """End everything, also what was started halfway."""

    @abstractmethod
    def _nodes(self) -> tuple[int, list[Node]]:
        """How many nodes there are to be, and those that are known here."""

    def expect_end(self) -> None:  # noqa: B027  (most have nothing to do)
        """Its client has told the server to stop: from now on nobody is alarmed, and nothing is replaced."""

    def on_broken(self, call: Callable[[LoomException], None]) -> None:  # noqa: B027
        """Have it called once, from another thread, where the cluster cannot go on, with the reason."""

    def _check_alive(self) -> None:  # noqa: B027
        """LoomError where there is no hope that workers come any more."""

    def _ask(self) -> Asker:
        from loom.deploy.asking import Asker  # an event loop and more, which most clients of this machine do without

        if self._pid != os.getpid():
            raise ClientClosed(f"this process was forked from the one that made the {self.title}: ask there")
        with self._state_lock:
            if self._is_closed:
                raise ClientClosed(f"this {self.title} is closed")
            if self._asker is None:
                self._asker = Asker(*self.connection())
            return self._asker

    def _check_open(self) -> None:
        if self._is_closed:
            raise LoomError(f"this {self.title} is closed")

    def _check_started(self) -> None:
        self._check_open()
        if not self._is_started:
            raise LoomError(f"this {self.title} is not started: call start(), or use it in a with statement")


class KeeperThread:
    """Gives the keeper its turns, `every_s` or when it is woken, until it is closed."""

    def __init__(self, keeper: Keeper, load: Callable[[], Load], says: Says, every_s: float) -> None:
        self._keeper = keeper
        self._load = load
        self._says = says
        self._every_s = every_s
        self._awake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="loom-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._awake.set()

    def close(self) -> None:
        """Returns when no turn is going on any more."""
        self._closing = True
        self._awake.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._awake.clear()
            if self._closing:
                return
            load: Load | None = None
            try:
                if self._keeper.needs_load:
                    load = self._load()
            except Exception as error:
                if not (self._closing or isinstance(error, ClientClosed)):
                    self._says.complain(f"the server does not say what waits: {error}")
            try:
                if not self._closing:
                    self._keeper.turn(load, time.monotonic())
            except Exception as error:  # whatever it is of: with this thread nothing would be looked after any more
                _log.debug("a turn failed", exc_info=True)
                self._says.complain(f"looking after the nodes failed, and is tried again: {error!r}")
            self._awake.wait(self._every_s)


def _worker_states(nodes: list[Node], load: Load | None) -> list[WorkerStatus]:
    """Those that nodes will bring, then others that have come by themselves."""
    there = {worker.name: worker for worker in load.workers} if load is not None else {}
    found = []
    for node in nodes:
        for name in node.workers:
            worker = there.pop(name, None)
            if worker is None:
                reason = f"({node.story})" if node.story else ""
                found.append(WorkerStatus(name, "waiting" if node.state == "waiting" else "starting", reason=reason))
            else:
                found.append(_arrived(worker))
    return found + [_arrived(worker) for worker in there.values()]


def _arrived(worker: WorkerLoad) -> WorkerStatus:
    return WorkerStatus(worker.name, "leaving" if worker.leaving else "running", worker.cpus, worker.n_tasks)


def close_all_first() -> None:
    """When Python ends, before what has been imported by now ends itself: an engine, and its half of a cluster."""
    atexit.unregister(_close_all)
    atexit.register(_close_all)


@atexit.register
def _close_all() -> None:
    for cluster in list(_started):
        try:
            cluster.close()
        except LoomException as error:  # the others are to end, too
            _log.error("%s", error)
