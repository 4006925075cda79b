"""Performs what the server core decides: one step per turn of the loop, one frame per peer and step.

With a journal, what a turn has to write down goes to the journal's thread. Workers are told at once what to do; what
clients are told waits until that is on disk, so that nothing they were told is forgotten.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from loom.core.events import (
    AskedAllocations,
    CloseLink,
    DisksFull,
    Facts,
    KeepAllocations,
    LinkDown,
    LinkDrained,
    LinkFull,
    LinkUp,
    NoWorkers,
    Received,
    Record,
    Send,
    ServerEvent,
    Settled,
    Shutdown,
    StartTrace,
    TasksWait,
    WorkerCame,
    WorkerGone,
)
from loom.core.past import Past
from loom.core.server import ServerCore
from loom.errors import LoomError, LoomException
from loom.failpoints import hit
from loom.journal.writer import JournalWriter
from loom.limits import CLIENT_SILENCE_S, CRASH_LIMIT, LINEAGE_BYTES, LINK_MAX_WAITING_BYTES, LINK_SILENCE_S, REATTACH_S
from loom.messages import (
    Allocations,
    ClientToServer,
    JournalStalled,
    Load,
    Message,
    SubmitChunk,
    TasksFinished,
    WorkerToServer,
)
from loom.net.link import SIGNS_OF_LIFE, Link, LinkHandler
from loom.net.listener import Listener, listen
from loom.net.trust import Trust
from loom.resources import describe
from loom.server.tracing import ServerTrace
from loom.wire.codec import Decoder
from loom.wire.handshake import Role

_log = logging.getLogger(__name__)

_TURN_ITEMS: Final = 4096  # tasks taken in or finished in one turn: about 10 ms, then links are served again
_LEAVE_S: Final = 2.0  # how long the last frames may take when the server stops
_FIRST_WRITE_S: Final = 30.0  # how long the journal may take to write that a server has started
_LOAD_S: Final = 30.0  # how long the loop may take to say what waits
_MOST_NAMED: Final = 5  # workers in one line of the log


class AllocationQueues(Protocol):
    """Who submits batch jobs with workers when tasks wait."""

    def start(
        self,
        kept: bytes,
        keep: Callable[[bytes], None],
        load: Callable[[], Load],
        retire: Callable[[list[str]], None],
    ) -> None:
        """The server listens. `kept` is what `keep` was given last, before it was started again; empty for a new one.
        `retire` has workers of these names go. `keep` and `retire` may be called from any thread, `load` from any but
        this one; all of them until `close` returns.
        """

    def ask(self, question: bytes) -> bytes:
        """The answer. Called in any thread; a LoomException is told to who has asked."""

    def close(self) -> None:
        """The server stops. Called in a thread."""


class ServerShell:
    """`run` serves until `stop`, a client's terminate, or cancellation.

    A worker that is silent for `silence_s` is lost. A task that ran on `crash_limit` workers when they died is not
    tried again (0: always). Specs of finished tasks are kept up to `lineage_bytes`. `journal`: the file in which the
    server writes what it has to know when it starts again; what is there already is taken up, and the workers that were
    there are waited for `reattach_s`. `allocations` are asked what concerns them. LoomError where it is no journal, is
    damaged, or cannot be written.
    """

    def __init__(
        self,
        trust: Trust,
        silence_s: float = LINK_SILENCE_S,
        crash_limit: int = CRASH_LIMIT,
        lineage_bytes: int = LINEAGE_BYTES,
        journal: str | None = None,
        reattach_s: float = REATTACH_S,
        allocations: AllocationQueues | None = None,
    ) -> None:
        self._trust = trust
        self._silence_s = silence_s
        self._journal: JournalWriter | None = None
        past: Past | None = None
        if journal is not None:
            past = Past()
            self._journal = JournalWriter(
                journal,
                past.apply,
                on_durable=lambda ticket: self._from_thread(self._on_durable),
                on_stalled=lambda reason: self._from_thread(self._on_stalled, reason),
                on_broken=lambda error: self._from_thread(self._on_broken, error),
            )
            _tell_found(journal, self._journal, past, reattach_s)
        # Late peers of an earlier server may still be there, of which nothing is known where there is no journal.
        incarnation = past.incarnation + 1 if past is not None and past.incarnation else int(time.time()) & 0xFFF_FFFF
        server = past.server if past is not None and past.server else secrets.randbits(62) | 1
        ticket_of = partial(trust.ticket, server)
        self._allocations = allocations
        self._kept_allocations = past.allocations if past is not None else b""
        self._core = ServerCore(incarnation, silence_s, crash_limit, lineage_bytes, server, past, reattach_s, ticket_of)
        self._held: deque[tuple[int, Send | CloseLink]] = deque()  # for clients, and what has to be on disk before
        self._n_recorded = 0
        self._stalled = ""  # why the journal cannot be written
        self._trace = ServerTrace(self._core.incarnation)
        self._links: dict[int, Link] = {}
        self._numbers: dict[Link, int] = {}
        self._link_numbers = itertools.count(1)
        self._decoders = {"client": Decoder(ClientToServer), "worker": Decoder(WorkerToServer)}
        self._events: list[ServerEvent] = []
        self._turn_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = asyncio.Event()
        self._listener: Listener | None = None
        self._fault: Exception | None = None
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._listener is not None
        return self._listener.port

    async def start(self, host: str, port: int, sock: socket.socket | None = None) -> None:
        """Listen; LoomError where the port cannot be had, or the journal cannot be written."""
        self._loop = asyncio.get_running_loop()
        if self._journal is not None:  # no peer may meet a server of which nothing is known later
            self._step([], time.monotonic())
            if not await self._loop.run_in_executor(None, self._journal.flush, _FIRST_WRITE_S):
                self._journal.close(0.0)
                await asyncio.sleep(0)  # what the journal's thread has said
                raise LoomError(
                    f"the journal cannot be written: {self._stalled or self._fault or 'the disk is too slow'}"
                )
            self._set_timer()
        self._listener = await listen(host, port, self._trust, self, sock)
        if self._allocations is not None:
            self._allocations.start(self._kept_allocations, self._keep_allocations, self._load, self._retire)
        # Plan ingest with the cyclic collector on costs up to seven times as much, and the graph has no lost cycles:
        # what refers back (consumers) is cut when a task is done or forgotten.
        gc.collect()
        gc.freeze()
        gc.disable()

    async def run(self) -> None:
        """Serve until stopped; what was still to be sent goes out within a bounded time. LoomError after a fault of our
        own.
        """
        await self._stopped.wait()
        self._trace.stop()
        if self._allocations is not None:
            await self._loop.run_in_executor(None, self._allocations.close)
            self._step([event for event in self._events if isinstance(event, KeepAllocations)], time.monotonic())
        if self._journal is not None:
            is_written = await self._loop.run_in_executor(None, self._journal.close, _LEAVE_S)
            self._on_durable()
            n_sessions = len(self._core.graph.sessions)
            if is_written and n_sessions:
                stay = "stays" if n_sessions == 1 else "stay"
                _log.info("%s %s in the journal %s", _counted(n_sessions, "session"), stay, self._journal.path)
        assert self._listener is not None
        self._listener.close()
        for link in list(self._links.values()):
            link.close("the server stops")
        deadline = time.monotonic() + _LEAVE_S
        while self._links and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        if isinstance(self._fault, LoomError):
            raise self._fault
        if self._fault is not None:
            raise LoomError(f"internal error, the server ends: {self._fault!r}")

    def stop(self) -> None:
        self._stopped.set()

    # -- Links --------------------------------------------------------------------------------------------------------

    def on_link(self, link: Link, role: Role) -> tuple[Decoder, LinkHandler]:
        number = next(self._link_numbers)
        self._links[number] = link
        self._numbers[link] = number
        if role == "worker":
            link.keep_alive(self._silence_s / SIGNS_OF_LIFE, self._silence_s)
        else:
            link.keep_alive(LINK_SILENCE_S / SIGNS_OF_LIFE, CLIENT_SILENCE_S)
            if self._stalled:
                link.send([JournalStalled(self._stalled)])
        self._add(LinkUp(number, role))
        _log.info("%s connected%s", link.peer, ", encrypted" if link.encrypted else "")
        return self._decoders[role], self

    def on_messages(self, link: Link, messages: list[Message]) -> None:
        number = self._numbers[link]
        received = Received(number, messages)
        if len(messages) > 1 and _weight(received) > _TURN_ITEMS:
            for message in messages:
                self._add(Received(number, [message]))
        else:
            self._add(received)

    def on_closed(self, link: Link, reason: str) -> None:
        number = self._numbers.pop(link)
        del self._links[number]
        self._add(LinkDown(number))
        _log.info("%s is gone: %s", link.peer, reason)

    def on_full(self, link: Link) -> None:
        self._add(LinkFull(self._numbers[link]))

    def on_drained(self, link: Link) -> None:
        self._add(LinkDrained(self._numbers[link]))

    # -- The journal --------------------------------------------------------------------------------------------------

    def _from_thread(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(call, *arguments)

    def _on_durable(self) -> None:
        assert self._journal is not None
        durable = self._journal.durable
        while self._held and self._held[0][0] <= durable:
            self._perform(self._held.popleft()[1])

    def _on_stalled(self, reason: str) -> None:
        self._stalled = reason
        if reason:
            _log.error("%s; nothing is acknowledged to clients until it can be, what runs goes on", reason)
        else:
            _log.info("the journal is written again")
        for link in list(self._links.values()):
            if link.role == "client":
                link.send([JournalStalled(reason)])

    def _on_broken(self, error: Exception) -> None:
        self._fault = LoomError(f"the journal cannot be written any more, the server ends: {error}")
        self.stop()

    # -- Allocation queues --------------------------------------------------------------------------------------------

    def _keep_allocations(self, state: bytes) -> None:
        """From any thread."""
        self._from_thread(self._add, KeepAllocations(state))

    def _load(self) -> Load:
        """From a thread that is not the loop's."""
        answer: concurrent.futures.Future[Load] = concurrent.futures.Future()
        self._from_thread(lambda: answer.set_result(self._core.questions.load(0)))
        return answer.result(_LOAD_S)

    def _retire(self, names: list[str]) -> None:
        """From any thread."""

        def tell() -> None:
            self._core.questions.retire(names)
            self._turn()  # sends it

        self._from_thread(tell)

    def _ask_allocations(self, asked: AskedAllocations) -> None:
        if self._allocations is None:
            self._answer(asked, Allocations(asked.seq, b"", "this server has no allocation queues"))
            return
        task = self._loop.create_task(self._let_answer(self._allocations, asked))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _let_answer(self, allocations: AllocationQueues, asked: AskedAllocations) -> None:
        try:
            found = await self._loop.run_in_executor(None, allocations.ask, asked.question)
        except LoomException as error:
            self._answer(asked, Allocations(asked.seq, b"", str(error)))
        except Exception as error:
            _log.exception("a question about allocation queues failed")
            self._answer(asked, Allocations(asked.seq, b"", f"internal error in the server: {error!r}"))
        else:
            self._answer(asked, Allocations(asked.seq, found, ""))

    def _answer(self, asked: AskedAllocations, answer: Allocations) -> None:
        link = self._links.get(asked.link)
        if link is not None:
            link.send([answer])

    # -- The turn -----------------------------------------------------------------------------------------------------

    def _add(self, event: ServerEvent) -> None:
        self._events.append(event)
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Give the core a bounded amount of what has come; the rest waits until the links were served again."""
        if self._stopped.is_set():  # links that are closed now are no news: their peers may meet the next server
            return
        weight = count = 0
        for event in self._events:
            weight += _weight(event)
            count += 1
            if weight > _TURN_ITEMS:
                break
        events = self._events[:count]
        del self._events[:count]
        self._turn_due = bool(self._events)
        if self._turn_due:
            asyncio.get_running_loop().call_soon(self._turn)
        try:
            self._step(events, time.monotonic())
            self._set_timer()
        except Exception as error:  # our fault: in an unknown state clients would wait for ever
            _log.exception("the server's turn failed")
            self._fault = error
            self.stop()

    def _step(self, events: list[ServerEvent], now: float) -> None:
        for effect in self._core.step(events, now):
            match effect:
                case Send() | CloseLink():
                    self._say(effect)
                case Record():
                    assert self._journal is not None
                    self._n_recorded = self._journal.append(effect.facts)
                    hit("recorded")
                case Settled():
                    _tell_settled(effect)
                case Facts():
                    self._trace.add(effect.facts)
                case StartTrace():
                    self._trace.start(os.fsdecode(effect.path))
                case TasksWait():
                    _log.warning(
                        "tasks (%s) of session %d wait: no worker has %s%s; they run as soon as one comes that has",
                        effect.symbol,
                        effect.session,
                        describe(effect.request),
                        f" for {effect.needs_s:.3g} s" if effect.needs_s >= 1 else "",
                    )
                case WorkerCame():
                    link = self._links.get(effect.link)
                    where = link.peer.removeprefix("worker ") if link is not None else "gone again"
                    _log.info("worker %s (%s) is here, with %d cpus", effect.name, where, effect.cpus)
                case WorkerGone() if self._stopped.is_set():
                    pass  # everybody goes
                case WorkerGone(left=True):
                    _log.info("worker %s has left", effect.name)
                case WorkerGone():
                    _log.warning(
                        "worker %s is lost: %d tasks that it had are run elsewhere, %d objects are made again",
                        effect.name,
                        effect.n_tasks,
                        effect.n_objects,
                    )
                case NoWorkers():
                    _log.warning("tasks wait: there is no worker (loom-worker HOST PORT starts one)")
                case DisksFull():
                    _log.warning("tasks wait until a worker has room on its disk again: all are full (see their logs)")
                case AskedAllocations():
                    self._ask_allocations(effect)
                case Shutdown():
                    _log.info("stopping: a client asked for it")
                    self.stop()

    def _say(self, effect: Send | CloseLink) -> None:
        """At once, or to a client when all that was recorded until now is on disk."""
        link = self._links.get(effect.link)
        if link is None:
            return
        waits = self._journal is not None and (self._held or self._n_recorded > self._journal.durable)
        if waits and link.role == "client":
            self._held.append((self._n_recorded, effect))
        else:
            self._perform(effect)

    def _perform(self, effect: Send | CloseLink) -> None:
        link = self._links.get(effect.link)
        if link is None:
            return
        if isinstance(effect, Send):
            hit(f"send-to-{link.role}")
            link.send(effect.messages)
            if link.full and link.waiting_bytes > LINK_MAX_WAITING_BYTES:
                _log.warning("cutting the link of %s: it does not read what it is told", link.peer)
                link.abort("it does not read what it is told")
        else:
            level = logging.WARNING if effect.at_fault else logging.DEBUG
            _log.log(level, "closing the link of %s: %s", link.peer, effect.reason)
            link.close(effect.reason)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._core.next_deadline()
        if deadline is not None:
            delay_s = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._turn_due:
            self._turn()


def _tell_found(path: str, journal: JournalWriter, past: Past, reattach_s: float) -> None:
    if journal.torn_bytes:
        story = "the last %d bytes of the journal %s are a write cut short, of which nobody was told; kept in %s"
        _log.warning(story, journal.torn_bytes, path, path + ".torn")
    if journal.is_new:
        _log.info("new journal %s", path)
        return
    for problem in past.problems:
        _log.error("journal %s: %s", path, problem)
    n_finished = sum(len(session.finished) for session in past.sessions.values())
    n_workers = len(past.workers) if past.sessions else 0
    _log.info(
        "journal %s: going on with %s and %s%s",
        path,
        _counted(len(past.sessions), "session"),
        _counted(n_finished, "finished task"),
        f"; waiting up to {reattach_s:g} s for {_counted(n_workers, 'worker')}" if n_workers else "",
    )


def _tell_settled(settled: Settled) -> None:
    if not settled.missing:
        _log.info("all workers are back")
        return
    names = ", ".join(settled.missing[:_MOST_NAMED])
    _log.warning(
        "%s %s not come back (%s%s): what they ran is run again, %s made again",
        _counted(len(settled.missing), "worker"),
        "has" if len(settled.missing) == 1 else "have",
        names,
        ", ..." if len(settled.missing) > _MOST_NAMED else "",
        "1 object is" if settled.n_objects == 1 else f"{settled.n_objects} objects are",
    )


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def _weight(event: ServerEvent) -> int:
    """How many tasks an event is about."""
    if not isinstance(event, Received):
        return 1
    weight = 0
    for message in event.messages:
        if isinstance(message, SubmitChunk):
            weight += len(message.chunk.flags)
        elif isinstance(message, TasksFinished):
            weight += len(message.tasks)
        else:
            weight += 1
    return weight
