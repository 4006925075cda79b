"""The workers of a Dask cluster as nodes: each can host a Loom worker, and some clusters can start more of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

from loom import __version__
from loom.deploy.dask_worker import Order, hold
from loom.deploy.nodes import Node, Offer
from loom.deploy.saying import Says, counted
from loom.errors import DeployError, LoomError
from loom.resources import MEM

_ASK_S: Final = 5.0
_END_S: Final = 30.0  # until all that is hosted has ended
_RESULT_S: Final = 10.0
_PRIORITY: Final = 1000  # before what Dask has planned: whatever runs there is waited for, and no more
_MEMORY_SHARE: Final = 0.6  # of a worker's memory is for objects, as without Dask
_UNWANTED_S: Final = 3.0  # some turns of who decides how many there are to be
_UNKNOWN_BYTES: Final = 1 << 60


def _installed() -> str:
    try:
        return version("hyperloom")
    except PackageNotFoundError:  # run from its sources
        return __version__


VERSION: Final = _installed()
"""As it is installed here: Dask says the same of its processes."""


class DaskWorker(NamedTuple):
    """`memory_bytes` 0: Dask sets no limit. `version`: of hyperloom, empty where there is none, None where that is not
    known yet. `is_started`: what it hosts is, and waits for no threads.
    """

    name: Any
    n_threads: int
    memory_bytes: int
    version: str | None
    is_started: bool

    @property
    def can_host(self) -> bool:
        return self.version == VERSION


class Scaling:
    """The object from which a Dask cluster was made, where it can make more workers, or fewer."""

    def __init__(self, cluster: Any, client: Any) -> None:
        self._cluster = cluster
        self._client = client

    def scale(self, count: int) -> None:
        try:
            self._cluster.scale(count)
        except Exception as error:
            raise DeployError(f"the Dask cluster cannot scale to {count} workers: {_text(error)}") from error

    def remove(self, workers: Mapping[str, DaskWorker], n_left: int) -> None:
        """Those at these addresses go, and `n_left` stay."""
        try:
            if hasattr(self._cluster, "scale_down"):
                self._cluster.sync(self._cluster.scale_down, [worker.name for worker in workers.values()])
            else:
                self._client.retire_workers(list(workers))
                self._cluster.scale(n_left)
        except Exception as error:
            raise DeployError(f"the Dask cluster cannot scale down to {n_left} workers: {_text(error)}") from error

    @property
    def n_threads(self) -> int:
        """Of a worker that it would start; 0: it does not say."""
        spec = getattr(self._cluster, "new_spec", None) or {}
        count = spec.get("options", {}).get("nthreads")
        return count if isinstance(count, int) else 0


@dataclass
class _Host:
    id: str
    name: str
    futures: list[Any]


class DaskNodes:
    """The provider. `n_threads` of each Dask worker are for Loom, None for all; `extras` is what each offers besides,
    and `options` are more of those of `loom-worker`.

    As long as it `follows`, every Dask worker that can host is to be a node, and `tell` hears how many those are.
    `lost` is called with the reason when all is over.
    """

    what = "worker"

    def __init__(
        self,
        client: Any,
        deployment: str,
        n_threads: int | None,
        extras: Mapping[str, int],
        options: Sequence[str],
        scaling: Scaling | None,
        tell: Callable[[int], None],
        lost: Callable[[str], None],
        says: Says,
    ) -> None:
        self.follows = True
        self._client = client
        self._deployment = deployment
        self._n_threads = n_threads
        self._extras = extras
        self._options = tuple(options)
        self._scaling = scaling
        self._tell = tell
        self._lost = lost
        self._says = says
        self._workers: dict[str, DaskWorker] = {}
        self._hosts: dict[str, _Host] = {}  # by the address of the Dask worker
        self._failures: dict[str, int] = {}  # by address
        self._unfit: dict[str, str] = {}  # by address, why it cannot host anything
        self._let_go: set[str] = set()  # addresses whose Loom worker has left in good order
        self._idle_since: dict[str, float] = {}  # addresses that host nothing
        self._coming: list[str] = []  # nodes for which the Dask cluster was asked to start workers
        self._next_id = map(str, itertools.count(1)).__next__
        self._last_threads = 0

    @property
    def offer(self) -> Offer:
        """Of the smallest. Without any, what the cluster would start."""
        known = list(self._workers.values())
        cpus = min((self._cpus(worker) for worker in known), default=self._last_threads)
        if not cpus:
            told = self._scaling.n_threads if self._scaling is not None else 0
            cpus = min(told or 1, self._n_threads or told or 1)
        self._last_threads = cpus
        memory = min((self._memory(worker) or _UNKNOWN_BYTES for worker in known), default=_UNKNOWN_BYTES)
        return Offer(cpus, {MEM: memory, **self._extras})

    def ask(self, question: str, **more: object) -> dict[str, Any]:
        """What our half in the Dask scheduler says. DeployError where it says nothing."""
        if self._client.status == "closed":
            raise self._is_lost("the Dask scheduler is gone")
        if self._client.status != "running":
            raise DeployError("the connection to the Dask scheduler is lost; Dask tries to connect again")
        limit_s = _END_S if question in ("close", "release") else _ASK_S
        try:
            call = getattr(self._client.scheduler, self._deployment)
            answer = self._client.sync(call, question=question, callback_timeout=limit_s, **more)
        except Exception as error:
            raise DeployError(f"the Dask scheduler does not answer: {_text(error)}") from error
        if not isinstance(answer, dict):
            raise self._is_lost(
                "the Dask scheduler had lost the connection to this process, and ended what it ran for it"
            )
        if "error" in answer:
            raise DeployError(answer["error"])
        return answer

    def _is_lost(self, reason: str) -> DeployError:
        self._lost(reason)
        return DeployError(reason)

    def check_scale(self, count: int) -> None:
        """LoomError where there cannot be so many."""
        if self._scaling is None and count > len(self._workers):
            raise LoomError(self._too_few(count))

    def _too_few(self, count: int) -> str:
        return (
            f"{counted(count, 'worker')} asked for, and the Dask cluster has {len(self._workers)}: it was found by its "
            "address, so start more there, or make the DaskCluster from the Dask cluster object (or its client)"
        )

    def nodes(self) -> list[Node]:
        answer = self.ask("workers")
        self._workers = {address: DaskWorker(*about) for address, about in answer["workers"].items()}
        if answer["server_ended"]:
            raise self._is_lost(f"the server has ended: {answer['server_ended']}")
        self._tell_unfit()
        self._drop_unwanted()
        looked = [self._look_at(address, host) for address, host in list(self._hosts.items())]
        found = [node for node in looked if node is not None]
        for address in self._free()[: len(self._coming)]:
            found.append(self._host(address, self._coming.pop(0)))
        if self.follows:
            self._tell(sum(worker.can_host for worker in self._workers.values()))
        return found + [Node(id, "waiting", ()) for id in self._coming]

    def check_fit(self) -> None:
        """DeployError where none of the workers that are there can host anything."""
        self.nodes()
        if self._unfit and len(self._unfit) == len(self._workers):
            raise DeployError(f"no worker can be hosted: {next(iter(self._unfit.values()))}")

    def _tell_unfit(self) -> None:
        for address, worker in self._workers.items():
            if worker.version is not None and not worker.can_host and address not in self._unfit:
                self._unfit[address] = f"the Dask worker {address} has {wrong_version(worker.version)}"
                self._says.complain(self._unfit[address])
        for address in self._unfit.keys() - self._workers.keys():
            del self._unfit[address]

    def _drop_unwanted(self) -> None:
        """Dask ends what was let go, and what came when it was not wanted any more."""
        now = time.monotonic()
        self._let_go &= self._workers.keys()
        idle = [address for address in self._workers if address not in self._hosts]
        self._idle_since = {address: self._idle_since.get(address, now) for address in idle}
        if self.follows or self._scaling is None:
            self._let_go.clear()
            return
        unwanted = {
            address: self._workers[address]
            for address, since in self._idle_since.items()
            if address in self._let_go
            or (now - since > _UNWANTED_S and address not in self._failures and address not in self._unfit)
        }
        if unwanted and not self._coming:
            try:
                self._scaling.remove(unwanted, len(self._hosts))
            except DeployError as error:
                self._says.complain(str(error))

    def launch(self, count: int) -> None:
        free = self._free()
        missing = count - len(free)
        if missing > 0 and self._scaling is None:
            raise DeployError(self._too_few(len(self._hosts) + count))
        for address in free[:count]:
            self._host(address, self._next_id())
        if missing > 0:
            assert self._scaling is not None
            self._scaling.scale(len(self._hosts) + len(self._coming) + missing)
            self._coming += [self._next_id() for _ in range(missing)]

    def end(self, nodes: Sequence[Node]) -> None:
        ended = {node.id for node in nodes}
        staying = [id for id in self._coming if id not in ended]
        if self._scaling is not None and len(staying) < len(self._coming):
            self._coming = staying
            self._scaling.scale(len(self._hosts) + len(staying))
        for address, host in self._hosts.items():
            if host.id in ended:
                self.ask("release", worker=address)

    def close(self) -> None:
        """All that this has in Dask ends, the server too."""
        try:
            self.ask("close")
        finally:
            for host in self._hosts.values():
                self._client.cancel(host.futures, force=True)
            self._hosts.clear()

    # -- One of them --------------------------------------------------------------------------------------------------

    def _free(self) -> list[str]:
        """Addresses of those that host nothing, best first."""
        free = [
            address
            for address, worker in self._workers.items()
            if worker.can_host and address not in self._hosts and address not in self._let_go
        ]
        return sorted(free, key=lambda address: self._failures.get(address, 0))

    def _cpus(self, worker: DaskWorker) -> int:
        return worker.n_threads if self._n_threads is None else min(self._n_threads, worker.n_threads)

    def _memory(self, worker: DaskWorker) -> int:
        """Bytes: as much of what Dask lets it have as of its threads. 0: no limit is known."""
        return worker.memory_bytes * self._cpus(worker) // worker.n_threads

    def _host(self, address: str, id: str) -> Node:
        worker = self._workers[address]
        cpus, memory = self._cpus(worker), self._memory(worker)
        called = str(worker.name).rpartition("://")[2]  # its address, where nobody gave it a name
        name = f"dask-{called}-{id}"
        limits = ["--mem", str(memory), "--memory", str(int(memory * _MEMORY_SHARE))] if memory else []
        order = Order(self._deployment, name, cpus, (*limits, *self._options))
        futures = [
            self._client.submit(
                hold,
                order,
                key=f"loom_worker-{self._deployment}-{name}-{thread}",
                workers=[address],
                allow_other_workers=False,
                pure=False,
                priority=_PRIORITY,
            )
            for thread in range(cpus)
        ]
        self._hosts[address] = _Host(id, name, futures)
        return Node(id, "waiting", (name,))

    def _look_at(self, address: str, host: _Host) -> Node | None:
        """None: it is not to be one any more, and nobody has to wonder."""
        if address not in self._workers:
            self._forget(address)
            self._failures.pop(address, None)
            self._says.say(f"the Dask worker {address} is gone")
            return None if self.follows else Node(host.id, "ended", (host.name,))
        done = next((future for future in host.futures if future.done()), None)
        if done is None:
            return Node(host.id, "running" if self._workers[address].is_started else "waiting", (host.name,))
        story = _end_of(done)
        if done.status != "finished":
            with suppress(DeployError):  # threads that it has taken nevertheless
                self.ask("release", worker=address)
        self._forget(address)
        if story:
            self._failures[address] = self._failures.get(address, 0) + 1
        else:
            self._let_go.add(address)
        return Node(host.id, "ended", (host.name,), f"in the Dask worker {address}: {story}" if story else "")

    def _forget(self, address: str) -> None:
        self._client.cancel(self._hosts.pop(address).futures, force=True)


def _end_of(future: Any) -> str:
    """What came of a task that held a thread: empty where the Loom worker went in good order."""
    try:
        if future.status == "finished":
            return str(future.result(timeout=_RESULT_S))
        if future.status == "error":
            return _text(future.exception(timeout=_RESULT_S))
    except Exception as error:
        return f"Dask does not say what came of it: {_text(error)}"
    return "Dask has cancelled the tasks that stand for it"


def wrong_version(found: str | None) -> str:
    """What is wrong with the hyperloom of a process of Dask; None and empty: it has none."""
    has = f"hyperloom {found}" if found else "no hyperloom"
    return f"{has}, and {VERSION} is needed: install Loom from the same source there"


def _text(error: BaseException | None) -> str:
    return str(error) or type(error).__name__
