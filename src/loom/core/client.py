"""The client's brain: commands that reach the server exactly once, results and where they are, fetching with retries.

Everything about threads, sockets and unpacking is the shell's. Commands carry sequence numbers; those not yet
acknowledged are said again after a reconnect, and the server applies each once.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from loom.core.client_events import (
    AskStats,
    CancelFutures,
    ClientEffect,
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
    FetchResults,
    FromServer,
    Opened,
    Ready,
    RelayPiece,
    ReleaseResults,
    StartTrace,
    StatsCame,
    Submit,
    Tick,
    ToServer,
    Undeliverable,
)
from loom.core.columns import column, ids_column
from loom.errors import ProtocolError
from loom.limits import CLIENT_CREDIT_BYTES, RECONNECT_PAUSE_MAX_S, RECONNECT_PAUSE_S, SESSION_GRACE_S
from loom.messages import (
    CANCELLED_TEXT,
    Acked,
    CancelResults,
    CloseSession,
    FailedResult,
    GetStats,
    LocateResult,
    Message,
    OpenSession,
    PeerAddress,
    ReadyResult,
    RelayedObject,
    RelayFetch,
    Release,
    ResultsFailed,
    ResultsReady,
    ResumeSession,
    SessionOpened,
    SessionRefused,
    SetTrace,
    Stats,
    SubmitChunk,
    Terminate,
)

_DIRECT_TRIES: Final = 2  # holders asked directly before the object is relayed by the server
_RELAY_TRIES: Final = 50  # each ends with a lost worker or an object that is made again: that passes


class _Fetching:
    """How often an object was asked for; `located` while the server looks for its holder."""

    __slots__ = ("coming", "direct", "located", "relayed")

    def __init__(self) -> None:
        self.direct = 0
        self.relayed = 0
        self.located = False
        self.coming = False  # the first piece of a relay has come


class ClientCore:
    """`token` is the session's secret: random, from the shell. `credit_bytes` is how much may come inline."""

    def __init__(self, token: bytes, credit_bytes: int = CLIENT_CREDIT_BYTES) -> None:
        self.token = token
        self.credit_bytes = credit_bytes
        self.session: int | None = None
        self.connected = False
        self.attached = False  # the session is open on the present link
        self.closed = False
        self.holders: dict[int, int] = {}  # finished results that are not here -> worker
        self.inlined: dict[int, int] = {}  # results that came inside ResultsReady -> bytes of credit
        self.fetching: dict[int, _Fetching] = {}
        self.void: dict[int, int] = {}  # released or cancelled, which is not acknowledged -> the seq of that
        self.peers: dict[int, PeerAddress] = {}
        self.next_seq = 1
        self.unacked: deque[Message] = deque()
        self._stats_awaited: dict[int, None] = {}  # seqs
        self._lost_at: float | None = None
        self._pause_s = RECONNECT_PAUSE_S
        self._closing = 0  # seq of the closing command
        self._to_server: list[Message] = []
        self._effects: list[ClientEffect] = []
        self._fetches: dict[int, list[int]] = {}
        self._now = 0.0

    def step(self, events: list[ClientEvent], now: float) -> list[ClientEffect]:
        self._now = now
        for event in events:
            if self.closed:
                break
            match event:
                case FromServer():
                    for message in event.messages:
                        self._on_message(message)
                case Submit():
                    self._command(SubmitChunk(self._take_seq(), event.chunk))
                case ReleaseResults():
                    self._on_release(event.numbers)
                case CancelFutures():
                    self._on_cancel(event.numbers)
                case FetchResults():
                    for number in event.numbers:
                        self._on_fetch(number)
                case FetchedDirectly():
                    self.fetching.pop(event.number, None)
                case FetchFailed():
                    self._on_fetch_failed(event.number, event.reason)
                case AskStats():
                    self._ask_stats()
                case StartTrace():
                    self._command(SetTrace(self._take_seq(), event.path))
                case Close():
                    self._on_close(event.terminate)
                case Connected():
                    self._on_connected()
                case Disconnected():
                    self._on_disconnected(event.reason)
                case Tick():
                    pass
        effects, self._effects = self._effects, []
        if self._to_server:
            if self.connected and not self.closed:
                effects.insert(0, ToServer(self._to_server))
            self._to_server = []
        effects += [Fetch(self.peers[worker], numbers) for worker, numbers in self._fetches.items()]
        self._fetches.clear()
        return effects

    def unsaid(self) -> tuple[object, ...]:
        """What waits to become an effect: empty between steps."""
        return self._to_server, self._effects, self._fetches

    # -- Commands -----------------------------------------------------------------------------------------------------

    def _take_seq(self) -> int:
        seq = self.next_seq
        self.next_seq += 1
        return seq

    def _command(self, message: Message) -> None:
        self.unacked.append(message)
        if self.attached:  # else it is said with all others when the session is open
            self._to_server.append(message)

    def _ask_stats(self) -> None:
        seq = self._take_seq()
        self._stats_awaited[seq] = None
        self._command(GetStats(seq))

    def _on_release(self, numbers: list[int]) -> None:
        seq = self._take_seq()
        credit_bytes = self._forget(numbers, seq, "the result was released")
        self._command(Release(seq, ids_column(numbers), credit_bytes))

    def _on_cancel(self, numbers: list[int]) -> None:
        """Some of them may have come in already, which the shell has not told yet: as if it had crossed."""
        seq = self._take_seq()
        credit_bytes = self._forget(numbers, seq, CANCELLED_TEXT)
        self._command(CancelResults(seq, ids_column(numbers)))
        self._grant(credit_bytes)
        self._effects.append(FailedFutures([FailedResult(number, number, "", CANCELLED_TEXT) for number in numbers]))

    def _forget(self, numbers: list[int], seq: int, why: str) -> int:
        """What is said of them before the server has applied command `seq` is void. Returns the credit they free."""
        credit_bytes = 0
        for number in numbers:
            credit_bytes += self.inlined.pop(number, 0)
            self.holders.pop(number, None)
            if self.fetching.pop(number, None) is not None:
                self._effects.append(Undeliverable(number, why))
            self.void[number] = seq
        return credit_bytes

    def _grant(self, credit_bytes: int) -> None:
        if credit_bytes:
            self._command(Release(self._take_seq(), b"", credit_bytes))

    def _on_close(self, terminate: bool) -> None:
        seq = self._closing = self._take_seq()
        self._command(Terminate(seq) if terminate else CloseSession(seq))
        if not self.connected:
            self._end("")

    def _end(self, reason: str) -> None:
        self.closed = True
        self._effects.append(Closed(reason))

    # -- The link -----------------------------------------------------------------------------------------------------

    def _on_connected(self) -> None:
        self.connected = True
        if self.session is None:
            self._to_server.append(OpenSession(self.token, self.credit_bytes))
        else:
            credit_bytes = max(0, self.credit_bytes - sum(self.inlined.values()))
            for command in self.unacked:
                if isinstance(command, Release):  # what it frees is in the figure above
                    command.credit_bytes = 0
            self._to_server.append(ResumeSession(self.session, self.token, credit_bytes))

    def _on_disconnected(self, reason: str) -> None:
        self.connected = self.attached = False
        self._to_server.clear()
        if self._closing or self.session is None:
            self._end("" if self._closing else reason)
            return
        if self._lost_at is None:
            self._lost_at = self._now
        if self._now - self._lost_at > SESSION_GRACE_S:
            self._end(f"the connection to the server was lost and did not come back: {reason}")
            return
        self._effects.append(Connect(self._pause_s))
        self._pause_s = min(2 * self._pause_s, RECONNECT_PAUSE_MAX_S)

    def _on_message(self, message: Message) -> None:
        match message:
            case ResultsReady():
                self._on_results_ready(message)
            case ResultsFailed():
                self._on_results_failed(message)
            case Acked():
                self._on_acked(message.seq)
            case RelayedObject():
                self._on_relayed(message)
            case Stats():
                if message.seq in self._stats_awaited:  # answered again after a reconnect
                    del self._stats_awaited[message.seq]
                    self._effects.append(StatsCame(message.values))
            case SessionOpened():
                self._on_session_opened(message)
            case SessionRefused():
                self._end(message.reason)
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__}")

    def _on_session_opened(self, message: SessionOpened) -> None:
        first = self.session is None
        self.session = message.session
        self.attached = True
        self._lost_at = None
        self._pause_s = RECONNECT_PAUSE_S
        self._to_server += self.unacked
        if first:
            self._effects.append(Opened(message.session))
        else:  # answers under way were lost with the link, even to what had been acknowledged
            said = self.unacked[0].seq if self.unacked else self.next_seq  # type: ignore[attr-defined]
            for seq in [seq for seq in self._stats_awaited if seq < said]:
                del self._stats_awaited[seq]
                self._ask_stats()
            for number, fetching in self.fetching.items():
                fetching.coming = False
                if fetching.located or fetching.relayed:
                    fetching.located = True
                    self._command(LocateResult(self._take_seq(), number))

    def _on_acked(self, seq: int) -> None:
        unacked = self.unacked
        while unacked and unacked[0].seq <= seq:  # type: ignore[attr-defined]  # every command has one
            command = unacked.popleft()
            if isinstance(command, Release | CancelResults) and self.void:
                for number in column(command.numbers, "Q"):
                    if self.void.get(number) == command.seq:
                        del self.void[number]
        if self._closing and seq >= self._closing:
            self._end("")

    # -- Results ------------------------------------------------------------------------------------------------------

    def _on_results_ready(self, message: ResultsReady) -> None:
        for peer in message.peers:
            self.peers[peer.worker] = peer
        results = message.results
        if self.void:
            results = self._without_void(results)
        news: list[ReadyResult] = []
        inlined, holders, fetching_now = self.inlined, self.holders, self.fetching
        for result in results:
            number, packed = result.number, result.packed
            if packed is not None:
                inlined[number] = len(packed)
                if number in holders:
                    del holders[number]
                if number in fetching_now:  # it was made again while we asked for it
                    del fetching_now[number]
                    self._effects.append(RelayPiece(number, b"", packed, True, True))
            else:
                if result.worker not in self.peers:
                    raise ProtocolError(f"the server named worker {result.worker} without its address")
                if number in self.inlined:  # it is here: told again on another link
                    continue
                self.holders[number] = result.worker
                fetching = self.fetching.get(number)
                if fetching is not None and fetching.located:
                    fetching.located = False
                    self._fetch(number, fetching)
            news.append(result)
        self._effects.append(Ready(news))

    def _without_void(self, results: list[ReadyResult]) -> list[ReadyResult]:
        """Without news that crossed a command; credit that such results took is granted anew."""
        self._grant(sum(len(r.packed) for r in results if r.number in self.void and r.packed is not None))
        return [r for r in results if r.number not in self.void]

    def _on_results_failed(self, message: ResultsFailed) -> None:
        """A result that is here stays good, even if it was lost at its worker and failed when it was made again."""
        results = [r for r in message.results if r.number not in self.void and r.number not in self.inlined]
        for failed in results:
            self.holders.pop(failed.number, None)
            if self.fetching.pop(failed.number, None) is not None:
                self._effects.append(Undeliverable(failed.number, failed.error))
        self._effects.append(FailedFutures(results))

    def _on_fetch(self, number: int) -> None:
        if number in self.fetching:
            return
        if number not in self.holders:
            self._effects.append(Undeliverable(number, "the result was released or is not finished"))
            return
        fetching = self.fetching[number] = _Fetching()
        self._fetch(number, fetching)

    def _fetch(self, number: int, fetching: _Fetching) -> None:
        if fetching.direct < _DIRECT_TRIES:
            fetching.direct += 1
            self._fetches.setdefault(self.holders[number], []).append(number)
        else:
            fetching.relayed += 1
            self._command(RelayFetch(self._take_seq(), number))

    def _on_fetch_failed(self, number: int, reason: str) -> None:
        """Ask the server who holds it now; it is computed again where it was lost."""
        fetching = self.fetching.get(number)
        if fetching is None:
            return
        if fetching.relayed >= _RELAY_TRIES:
            del self.fetching[number]
            self._effects.append(Undeliverable(number, reason))
            return
        fetching.located = True
        fetching.coming = False
        self._command(LocateResult(self._take_seq(), number))

    def _on_relayed(self, message: RelayedObject) -> None:
        fetching = self.fetching.get(message.number)
        if fetching is None:
            return
        if message.error:
            self._on_fetch_failed(message.number, message.error)
            return
        if message.last:
            del self.fetching[message.number]
        first = not fetching.coming
        fetching.coming = True
        self._effects.append(RelayPiece(message.number, message.header, message.piece, message.last, first))
