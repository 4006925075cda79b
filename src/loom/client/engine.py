"""The client's one I/O thread: it owns the core, the link and the fetching; user threads post commands to it."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as PromisedResult
from typing import Final

from loom.client.landing import MemoryLanding
from loom.client.results import Payload, Results
from loom.core.client import ClientCore
from loom.core.client_events import (
    ClientEvent,
    Close,
    Closed,
    Connect,
    Connected,
    Disconnected,
    FailedFutures,
    Fetch,
    FetchedDirectly,
    FetchFailed,
    FromServer,
    Opened,
    Ready,
    RelayPiece,
    ReleaseResults,
    StatsCame,
    Tick,
    ToServer,
    Undeliverable,
)
from loom.data.buffers import Segment
from loom.errors import ClientClosed, ConnectError, ConnectionLost, LoomException
from loom.ids import NUMBER_BITS, number_of
from loom.limits import LINK_SILENCE_S
from loom.messages import Message, ServerToClient
from loom.net.link import SIGNS_OF_LIFE, Link, connect
from loom.net.objects import ObjectFetcher
from loom.wire.codec import Decoder

_log = logging.getLogger(__name__)

_COLLECT_S: Final = 0.2  # how long a collected future may wait until the server hears of it
_TOKEN_BYTES: Final = 16
_CLOSE_S: Final = 5.0  # how long the server may take to acknowledge the end of a session


class Engine:
    """`collected` holds the numbers of futures that Python has collected; this thread releases them."""

    def __init__(self, host: str, port: int, key: bytes, results: Results, collected: deque[int]) -> None:
        self._host = host
        self._port = port
        self._key = key
        self._results = results
        self._collected = collected
        self._core = ClientCore(secrets.token_bytes(_TOKEN_BYTES))
        self._commands: deque[ClientEvent] = deque()
        self._wake_due = False
        self._events: list[ClientEvent] = []
        self._turn_due = False
        self._link: Link | None = None
        self._relayed: dict[int, list[bytes]] = {}
        self._stats: deque[PromisedResult[dict[str, int]]] = deque()
        self._opened: PromisedResult[int] = PromisedResult()
        self._first_error: LoomException | None = None
        self.closed = threading.Event()
        self._closing = False  # nothing may be said after the closing command
        self._end: LoomException = ClientClosed("the client is closed")  # why the session is over, once it is
        self._loop = asyncio.new_event_loop()
        self._abandoned: tuple[Callable[[], None], Callable[[], None], bool] | None = None
        self._thread = threading.Thread(target=self._run, name="loom-client", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- From user threads --------------------------------------------------------------------------------------------

    def start(self, timeout_s: float) -> int:
        """Connect and open a session; returns its number. Raises ConnectError and its kinds."""
        self._timeout_s = timeout_s
        self._thread.start()
        return self._opened.result()

    def post(self, command: ClientEvent) -> None:
        self._commands.append(command)
        if not self._wake_due:
            self._wake_due = True
            try:
                self._loop.call_soon_threadsafe(self._turn)
            except RuntimeError:  # the loop is closed
                raise ClientClosed("the client is closed") from None

    def ask_stats(self, ask: ClientEvent) -> dict[str, int]:
        promised: PromisedResult[dict[str, int]] = PromisedResult()
        self._stats.append(promised)
        self.post(ask)
        if self.closed.is_set():  # it may have been too late for the thread to see it
            self._refuse_stats()
        return promised.result()

    def _refuse_stats(self) -> None:
        while self._stats:
            try:
                self._stats.popleft().set_exception(self._end)
            except IndexError:  # another thread does the same
                return

    def close(self, command: ClientEvent) -> None:
        """Say goodbye and end the thread; returns when both are done."""
        if not self.closed.is_set():
            self.post(command)
            self.closed.wait(_CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if not self.closed.is_set():  # the server did not answer: whoever waits must not wait on
            self._on_session_over("")

    def abandon(self, before: Callable[[], None], afterwards: Callable[[], None], terminate: bool) -> None:
        """The client was collected: end by yourself, with these calls around it. Only an assignment, for `__del__`."""
        self._abandoned = before, afterwards, terminate

    # -- The thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._fetcher = ObjectFetcher(self._key, MemoryLanding, _adopt)
        self._decoder = Decoder(ServerToClient)
        self._connect_later(0.0, self._timeout_s)
        self._loop.call_later(_COLLECT_S, self._collect)
        try:
            self._loop.run_forever()
        finally:
            self._fetcher.close()
            if self._link is not None:
                self._link.abort("the client is closed")
            for task in self._tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()
        if self._abandoned is not None:
            self._abandoned[1]()

    def _collect(self) -> None:
        if self._abandoned is not None:
            before, _afterwards, terminate = self._abandoned
            before()
            self._loop.call_later(_CLOSE_S, self._loop.stop)
            self._commands.append(Close(terminate))
            self._turn()
            return
        if self._collected:
            self._turn()
        self._loop.call_later(_COLLECT_S, self._collect)

    def _connect_later(self, delay_s: float, timeout_s: float) -> None:
        task = self._loop.create_task(self._connect(delay_s, timeout_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, delay_s: float, timeout_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            self._link = await connect(self._host, self._port, "client", self._key, self._decoder, self, timeout_s)
        except ConnectError as error:
            self._first_error = error
            self._add(Disconnected(str(error)))
        except Exception as error:  # an address that is none, say: nobody else would hear of it
            self._first_error = ConnectError(f"cannot connect to {self._host}:{self._port}: {error!r}")
            self._add(Disconnected(str(self._first_error)))
        else:
            self._link.keep_alive(LINK_SILENCE_S / SIGNS_OF_LIFE, LINK_SILENCE_S)
            self._add(Connected())
            if self._link.closed:  # before it was ours, so on_closed has passed it over
                self._link = None
                self._add(Disconnected("the connection was lost at once"))

    # -- The link -----------------------------------------------------------------------------------------------------

    def on_messages(self, link: Link, messages: list[Message]) -> None:
        self._add(FromServer(messages))

    def on_closed(self, link: Link, reason: str) -> None:
        if link is self._link:
            self._link = None
            self._add(Disconnected(reason))

    def on_full(self, link: Link) -> None:
        """Plans are in memory already; the transport keeps what the server does not take yet."""

    def on_drained(self, link: Link) -> None:
        """See on_full."""

    # -- The turn -----------------------------------------------------------------------------------------------------

    def _add(self, event: ClientEvent) -> None:
        self._events.append(event)
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = self._wake_due = False
        events, self._events = self._events, []
        collected = self._take_collected()  # before the commands are: whoever let a future go has posted what needs it
        while self._commands:
            command = self._commands.popleft()
            self._closing |= isinstance(command, Close)
            events.append(command)
        if collected and not self._closing:  # with the session everything of it goes
            events.append(ReleaseResults(collected))
        try:
            for effect in self._core.step(events or [Tick()], time.monotonic()):
                self._perform(effect)
        except Exception as error:  # our fault: nothing that comes after it can be trusted
            _log.exception("the client's turn failed")
            self._on_session_over(f"internal error in the client: {error!r}")

    def _take_collected(self) -> list[int]:
        """Numbers of collected futures."""
        numbers = []
        while self._collected:
            numbers.append(self._collected.popleft())
        self._results.forget(numbers)
        return numbers

    def _perform(self, effect: object) -> None:
        match effect:
            case ToServer():
                if self._link is not None:
                    self._link.send(effect.messages)
            case Ready():
                self._results.ready(effect.results)
            case FailedFutures():
                self._results.failed(effect.results)
            case Fetch():
                self._fetch(effect)
            case RelayPiece():
                self._on_relay_piece(effect)
            case Undeliverable():
                self._relayed.pop(effect.number, None)
                self._results.undeliverable(effect.number, effect.reason)
            case StatsCame():
                if self._stats:
                    self._stats.popleft().set_result(effect.values)
            case Connect():
                self._connect_later(effect.delay_s, self._timeout_s)
            case Opened():
                self._session = effect.session
                self._opened.set_result(effect.session)
            case Closed():
                self._on_session_over(effect.reason)

    def _on_session_over(self, reason: str) -> None:
        if reason:
            self._end = ConnectionLost(reason)
        self.closed.set()
        if not self._opened.done():
            self._opened.set_exception(self._first_error or ConnectError(reason))
        self._refuse_stats()
        self._results.broken(self._end)
        if self._abandoned is not None:
            self._loop.stop()

    # -- Objects ------------------------------------------------------------------------------------------------------

    def _fetch(self, fetch: Fetch) -> None:
        base = self._session << NUMBER_BITS

        def done(object_id: int, found: bytes | tuple[bytes, list[Segment]] | None, reason: str, _: bool) -> None:
            number = number_of(object_id)
            if found is None:
                self._add(FetchFailed(number, reason))
            else:
                self._results.delivered(number, found)
                self._add(FetchedDirectly(number))

        self._fetcher.fetch(fetch.peer, [base | number for number in fetch.numbers], done)

    def _on_relay_piece(self, piece: RelayPiece) -> None:
        pieces = self._relayed.setdefault(piece.number, [])
        if piece.first:  # an earlier attempt may have broken off
            pieces.clear()
        pieces.append(piece.piece)
        if piece.last:
            del self._relayed[piece.number]
            found: Payload = (piece.header, list(pieces)) if piece.header else b"".join(pieces)
            self._results.delivered(piece.number, found)


def _adopt(descriptor: int, size_bytes: int) -> Segment:
    try:
        return memoryview(mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)
