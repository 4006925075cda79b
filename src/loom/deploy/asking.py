"""Asks a server what waits and who is idle, and has workers go. From any thread; no session is needed for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
from typing import Final, TypeVar

from loom.errors import ClientClosed, ConnectError, LoomError
from loom.limits import CONNECT_TIMEOUT_S, LINK_SILENCE_S
from loom.messages import (
    Allocations,
    AskAllocations,
    AskLoad,
    Load,
    Message,
    Retired,
    RetireWorkers,
    ServerToClient,
)
from loom.net.link import SIGNS_OF_LIFE, Link, connect
from loom.net.places import Place
from loom.net.trust import Trust
from loom.wire.codec import Decoder

_ANSWER_S: Final = 30.0  # how long the server may take; a batch system that it asks for us may be slow

Answer = TypeVar("Answer", Load, Retired, Allocations)


class Asker:
    """A thread with a link to the server, made when it is needed and made anew when it was lost.

    Every question raises ConnectError where there is no server at that place, LoomError where it does not answer, and
    ClientClosed where the asker is closed.
    """

    def __init__(self, place: Place, trust: Trust) -> None:
        self._place = place
        self._trust = trust
        self._link: Link | None = None
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._next_seq = itertools.count(1).__next__
        self._loop = asyncio.new_event_loop()
        self._connecting = asyncio.Lock()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="loom-asker", daemon=True)
        self._thread.start()

    def load(self, timeout_s: float = _ANSWER_S) -> Load:
        return self._ask(Load, AskLoad(self._next_seq()), timeout_s)

    def retire(self, names: list[str]) -> list[str]:
        """Ask the workers of these names to hand over what they have, and to go. Returns those that are there."""
        return self._ask(Retired, RetireWorkers(self._next_seq(), names), _ANSWER_S).names

    def allocations(self, question: bytes, timeout_s: float = _ANSWER_S) -> bytes:
        """The answer of who looks after the server's allocation queues; LoomError with what that says instead."""
        answer = self._ask(Allocations, AskAllocations(self._next_seq(), question), timeout_s)
        if answer.error:
            raise LoomError(answer.error)
        return answer.answer

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    # -- The thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            if self._link is not None:
                self._link.abort("the asker is closed")
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(asyncio.sleep(0))  # sockets of aborted links are closed in the next turn
            self._loop.close()

    def _ask(self, kind: type[Answer], question: AskLoad | RetireWorkers | AskAllocations, timeout_s: float) -> Answer:
        with self._lock:  # nothing comes after the end of the loop: nobody would answer it
            if self._closed:
                raise ClientClosed("the cluster is closed")
            told = asyncio.run_coroutine_threadsafe(self._tell(question, timeout_s), self._loop)
        try:
            answer = told.result()
        except concurrent.futures.CancelledError:
            raise ClientClosed("the cluster was closed") from None
        if not isinstance(answer, kind):
            raise LoomError(f"the server answered with {type(answer).__name__}")
        return answer

    async def _tell(self, question: AskLoad | RetireWorkers | AskAllocations, timeout_s: float) -> Message:
        link = await self._connect()
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._asked[question.seq] = answer
        try:
            async with asyncio.timeout(timeout_s):
                link.send([question])
                return await answer
        except TimeoutError:
            raise LoomError(f"the server at {self._place} has not answered within {timeout_s:g} s") from None
        finally:
            self._asked.pop(question.seq, None)

    async def _connect(self) -> Link:
        async with self._connecting:
            if self._link is not None:
                return self._link
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    host, port = await self._place.find()
            except TimeoutError:
                raise ConnectError(f"{self._place} does not say where the server is") from None
            link = await connect(host, port, "client", self._trust, Decoder(ServerToClient), self)
            link.keep_alive(LINK_SILENCE_S / SIGNS_OF_LIFE, LINK_SILENCE_S)
            if not link.closed:
                self._link = link
            return link

    def on_messages(self, link: Link, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, Load | Retired | Allocations):
                answer = self._asked.pop(message.seq, None)
                if answer is not None and not answer.done():
                    answer.set_result(message)

    def on_closed(self, link: Link, reason: str) -> None:
        if self._link is link or self._link is None:
            self._link = None
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(ConnectError(f"the link to the server is lost: {reason}"))

    def on_full(self, link: Link) -> None:
        """Questions are few."""

    def on_drained(self, link: Link) -> None:
        """See on_full."""
