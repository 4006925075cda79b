"""The half of a DaskCluster that is in the process of the Dask scheduler: the server, and who may ask where it is.

It goes when the Dask client that registered it does, however that ends, when it is told to, and with the scheduler.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from distributed import Scheduler
from distributed.comm import get_address_host
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import WorkerState

from loom.deploy.hosted import HostedServer
from loom.errors import ConnectError

_log = logging.getLogger(__name__)

_TELL_S: Final = 15.0  # until all workers have ended what they host; one that hangs is not waited for longer


class ServerPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Runs a server below the scheduler. `name` is that of the deployment, and of what the scheduler is asked by.

    `owner` is the id of the Dask client that it goes with. `host`: the address to listen on, empty for the one at which
    the scheduler is reached.
    """

    def __init__(
        self,
        name: str,
        owner: str,
        host: str,
        journal: str | None,
        key_file: str | None,
        options: tuple[str, ...],
    ) -> None:
        self.name = name
        self._owner = owner
        self._host = host
        self._journal = journal
        self._key_file = key_file
        self._options = options

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._hosts: dict[str, str] = {}  # by address, the plugin of each
        self._started: set[str] = set()  # those of them that have what they need
        self._versions: dict[str, str] = {}  # of hyperloom, by address; empty where there is none
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._ending: asyncio.Task[None] | None = None
        is_alone = scheduler.address.startswith("inproc://")  # all of Dask is in this process
        host = self._host or ("127.0.0.1" if is_alone else get_address_host(scheduler.address))
        await asyncio.gather(*map(self._look_at, scheduler.workers))
        self._server = await asyncio.to_thread(HostedServer, host, self._journal, self._key_file, self._options)
        scheduler.handlers[self.name] = self.answer
        if self._owner not in scheduler.clients:  # it has died meanwhile
            self._begin_end()

    async def answer(self, question: str, public: bytes = b"", worker: str = "", plugin: str = "") -> dict[str, Any]:
        """What drivers and workers ask. An answer without "error" has what was asked for.

        where: the server's "host" and "port". key: "sealed", for whoever has that `public` half; the `worker` at that
        address, if there is one, starts ours now. workers: "workers", those that Dask has, by address: name, threads,
        bytes of memory (0: not known), version of hyperloom (None: not known yet), whether ours is started there.
        hold: a `worker` begins to make room, by that `plugin`, which is removed when all is over. left: it has ended by
        itself. release: a `worker` ends what it hosts. close: all ends, before this is answered.
        """
        match question:
            case "where":
                return self._where()
            case "key":
                if worker in self._hosts:
                    self._started.add(worker)
                return {"sealed": self._server.sealed_key(public)}
            case "workers":
                for worker in self._scheduler.workers.keys() - self._versions.keys():
                    self.add_worker(self._scheduler, worker)
                found = {w.address: self._describe(w) for w in self._scheduler.workers.values()}
                return {"workers": found, "server_ended": self._end_of_server()}
            case "hold":
                if self._ending is not None:
                    return {"error": "the deployment has ended"}
                self._hosts[worker] = plugin
                self._started.discard(worker)
                return {}
            case "left":
                if self._hosts.get(worker) == plugin:
                    self._forget(worker)
                return {}
            case "release":
                await self._end_hosting([worker])
                return {}
            case "close":
                self._begin_end()
                assert self._ending is not None
                await asyncio.shield(self._ending)
                return {}
        return {"error": f"this Dask scheduler does not know the question {question!r:.50}"}

    def _describe(self, worker: WorkerState) -> list[Any]:
        version, is_started = self._versions.get(worker.address), worker.address in self._started
        return [worker.name, worker.nthreads, worker.memory_limit or 0, version, is_started]

    def _end_of_server(self) -> str:
        """How it ended, empty while it is there."""
        return "" if self._server.alive else self._server.story or "it was told to"

    def _where(self) -> dict[str, Any]:
        ended = self._end_of_server()
        if ended:
            return {"error": f"the server has ended: {ended}"}
        try:
            host, port = self._server.address
        except ConnectError as error:
            return {"error": str(error)}
        return {"host": host, "port": port}

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        if worker not in self._looking:
            self._looking[worker] = asyncio.get_running_loop().create_task(self._look_at(worker))

    async def _look_at(self, worker: str) -> None:
        """A task that a Dask worker cannot open ends it, so whether it has what ours need is known before."""
        message = {"op": "versions", "packages": ["hyperloom"]}
        asked = self._scheduler.broadcast(msg=message, workers=[worker], on_error="ignore")
        try:
            answer = (await asyncio.wait_for(asked, _TELL_S)).get(worker)
            if answer is not None:
                self._versions[worker] = answer["packages"].get("hyperloom") or ""
        except TimeoutError:
            pass  # it is asked again
        finally:
            self._looking.pop(worker, None)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        if client == self._owner:
            self._begin_end()

    def remove_worker(self, scheduler: Scheduler, worker: str, **_more: object) -> None:
        self._forget(worker)
        self._versions.pop(worker, None)

    def _forget(self, worker: str) -> None:
        self._hosts.pop(worker, None)
        self._started.discard(worker)

    async def close(self) -> None:
        """The scheduler ends; its workers have been told."""
        self._scheduler.handlers.pop(self.name, None)
        await self._close_server()

    def _begin_end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        """Workers first: the server hears what they hand over, and none of them looks for a server that is gone."""
        try:
            await self._end_hosting(list(self._hosts))
        finally:
            await self._close_server()
            self._scheduler.handlers.pop(self.name, None)
            self._scheduler.plugins.pop(self.name, None)

    async def _close_server(self) -> None:
        try:
            await asyncio.to_thread(self._server.close)
        except RuntimeError:  # this process ends, and starts no threads any more
            self._server.close()

    async def _end_hosting(self, workers: list[str]) -> None:
        hosting = [(worker, self._hosts.pop(worker)) for worker in workers if worker in self._hosts]
        told = [
            self._scheduler.broadcast(msg={"op": "plugin-remove", "name": name}, workers=[worker], on_error="ignore")
            for worker, name in hosting
        ]
        try:
            await asyncio.wait_for(asyncio.gather(*told, return_exceptions=True), _TELL_S)
        except TimeoutError:
            _log.warning("not all Dask workers have ended what they host within %g s", _TELL_S)
