"""The client's one I/O thread: it owns the core, the link and the fetching; user threads post commands to it."""

from __future__ import annotations

import asyncio
import itertools
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
    AskSessions,
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
    Leave,
    LinkAway,
    LinkBack,
    Opened,
    Ready,
    RelayPiece,
    ReleaseResults,
    SessionsCame,
    Stalled,
    StatsCame,
    Tick,
    ToServer,
    Undeliverable,
)
from loom.data.buffers import Segment
from loom.errors import ClientClosed, ConnectError, ConnectionLost, LoomError, LoomException
from loom.ids import NUMBER_BITS, number_of
from loom.limits import CLOSE_TIMEOUT_S, LINK_SILENCE_S
from loom.messages import Message, ServerToClient
from loom.net.link import SIGNS_OF_LIFE, Link, connect
from loom.net.objects import ObjectFetcher
from loom.net.places import Place, address_line
from loom.net.trust import Trust
from loom.wire.codec import Decoder

_log = logging.getLogger(__name__)

_COLLECT_S: Final = 0.2  # how long a collected future may wait until the server hears of it
_TOKEN_BYTES: Final = 16
_LAST_TURNS: Final = 3  # in which the loop closes the sockets of links that were aborted


class Engine:
    """`collected` holds the numbers of futures that Python has collected; this thread releases them.

    `name` is of a session that outlives its clients, or empty; `who` and `take_over` as in messages.OpenSession.
    """

    def __init__(
        self,
        place: Place,
        trust: Trust,
        results: Results,
        collected: deque[int],
        name: str = "",
        who: str = "",
        take_over: bool = False,
    ) -> None:
        self._place = place
        self._where = str(place)  # the server is, or was last
        self._trust = trust
        self._results = results
        self._collected = collected
        self._core = ClientCore(secrets.token_bytes(_TOKEN_BYTES), name=name, who=who, take_over=take_over)
        self._commands: deque[ClientEvent] = deque()
        self._wake_due = False
        self._events: list[ClientEvent] = []
        self._turn_due = False
        self._link: Link | None = None
        self._relayed: dict[int, list[bytes]] = {}
        self._stats: deque[PromisedResult[dict[str, int]]] = deque()
        self._questions: dict[int, PromisedResult[SessionsCame]] = {}
        self._next_question = itertools.count().__next__
        self._stalled = ""  # why the server acknowledges nothing
        self._opened: PromisedResult[Opened] = PromisedResult()
        self._first_error: LoomException | None = None
        self.closed = threading.Event()
        self._closing = False  # nothing may be said after the closing command
        self._end: LoomException = ClientClosed("the client is closed")  # why the session is over, once it is
        self._loop = asyncio.new_event_loop()
        self._abandoned: tuple[Callable[[], None], Callable[[], None], Close | Leave] | None = None
        self._thread = threading.Thread(target=self._run, name="loom-client", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- From user threads --------------------------------------------------------------------------------------------

    def start(self, timeout_s: float) -> Opened:
        """Connect and open a session. Raises ConnectError and its kinds."""
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
            self._refuse_questions()
        return promised.result()

    def ask_sessions(self, end: str = "") -> SessionsCame:
        """The named sessions, after the end of the one of that name."""
        promised: PromisedResult[SessionsCame] = PromisedResult()
        question = self._next_question()
        self._questions[question] = promised
        self.post(AskSessions(question, end))
        if self.closed.is_set():
            self._refuse_questions()
        return promised.result()

    def _refuse_questions(self) -> None:
        try:
            while self._stats:
                self._stats.popleft().set_exception(self._end)
            while self._questions:
                self._questions.popitem()[1].set_exception(self._end)
        except (IndexError, KeyError):  # another thread does the same
            return

    def close(self, command: Close | Leave, timeout_s: float | None) -> LoomException | None:
        """Say goodbye and end the thread; returns when both are done, at the latest after about `timeout_s`.

        Returns why that was not acknowledged, None where it was.
        """
        if not self.closed.is_set():
            self.post(command)
            self.closed.wait(timeout_s)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self.closed.is_set():
            return self._end if isinstance(self._end, ConnectionLost) else None
        self._on_session_over("")  # whoever waits must not wait on
        return LoomError(f"the server at {self._where} has not acknowledged it: {self._trouble()}")

    @property
    def said_all(self) -> bool:
        """After `close`: all was acknowledged but the goodbye, perhaps, which would not be missed."""
        return len(self._core.unacked) <= 1

    def _trouble(self) -> str:
        if self._stalled:
            return self._stalled
        return "it does not answer" if self._core.attached else "the connection is lost"

    def abandon(self, before: Callable[[], None], afterwards: Callable[[], None], farewell: Close | Leave) -> None:
        """The client was collected: end by yourself, with these calls around it. Only an assignment, for `__del__`."""
        self._abandoned = before, afterwards, farewell

    # -- The thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._fetcher = ObjectFetcher(self._trust, MemoryLanding, _adopt)
        self._decoder = Decoder(ServerToClient)
        self._connect_later(0.0, self._timeout_s)
        self._loop.call_later(_COLLECT_S, self._collect)
        try:
            self._loop.run_forever()
        finally:
            self._fetcher.close()
            if self._link is not None:
                self._link.abort("the client is closed")
            while tasks := asyncio.all_tasks(self._loop):  # one that ends may have begun another one just before
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            for _ in range(_LAST_TURNS):
                self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()
        if self._abandoned is not None:
            self._abandoned[1]()

    def _collect(self) -> None:
        if self._abandoned is not None:
            before, _afterwards, farewell = self._abandoned
            before()
            self._loop.call_later(CLOSE_TIMEOUT_S, self._loop.stop)
            self._commands.append(farewell)
            self._turn()
            return
        if self._collected or self._link is None:  # while that is away time alone changes something
            self._turn()
        self._loop.call_later(_COLLECT_S, self._collect)

    def _connect_later(self, delay_s: float, timeout_s: float) -> None:
        task = self._loop.create_task(self._connect(delay_s, timeout_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, delay_s: float, timeout_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            async with asyncio.timeout(timeout_s):
                host, port = await self._place.find()
            self._where = address_line(host, port)
            self._link = await connect(host, port, "client", self._trust, self._decoder, self, timeout_s)
        except ConnectError as error:
            self._first_error = error
            self._add(Disconnected(str(error)))
        except TimeoutError:  # of the place: `connect` has words of its own
            self._first_error = ConnectError(f"{self._place} has not said within {timeout_s:g} s where the server is")
            self._add(Disconnected(str(self._first_error)))
        except Exception as error:  # an address that is none, say: nobody else would hear of it
            self._first_error = ConnectError(f"cannot connect to {self._where}: {error!r}")
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
            self._closing |= isinstance(command, Close | Leave)
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
            case SessionsCame():
                promised = self._questions.pop(effect.question, None)
                if promised is not None:
                    promised.set_result(effect)
            case Opened():
                self._session = effect.session
                self._fetcher.show(effect.session, effect.ticket)
                self._results.expect([number for number, _ in effect.names])  # they may be told of in the same turn
                self._opened.set_result(effect)
            case LinkAway():
                _log.warning(
                    "the connection to the server at %s is lost (%s); trying again for up to %s",
                    self._where,
                    effect.reason,
                    _time_text(effect.patience_s),
                )
            case LinkBack():
                _log.warning("the connection to the server at %s is back after %.1f s", self._where, effect.away_s)
            case Stalled():
                self._on_stalled(effect.reason)
            case Closed():
                self._on_session_over(effect.reason)
                if effect.reason and self._link is not None:
                    self._link.abort(effect.reason)

    def _on_stalled(self, reason: str) -> None:
        self._stalled = reason
        if reason:
            _log.warning("the server at %s acknowledges nothing: %s", self._where, reason)
            if not self._opened.done():
                self._loop.call_later(self._timeout_s, self._give_up_opening)
        else:
            _log.info("the server at %s acknowledges what it is told again", self._where)

    def _give_up_opening(self) -> None:
        if not self._opened.done() and self._stalled:
            self._on_session_over(f"the server at {self._where} opens no session now: {self._stalled}")

    def _on_session_over(self, reason: str) -> None:
        if reason:
            self._end = ConnectionLost(reason)
        self.closed.set()
        if not self._opened.done():
            self._opened.set_exception(self._first_error or ConnectError(reason))
        self._refuse_questions()
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


def _time_text(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def _adopt(descriptor: int, size_bytes: int) -> Segment:
    try:
        return memoryview(mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)
