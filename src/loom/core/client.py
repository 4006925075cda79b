"""The client's brain: commands that reach the server exactly once, results and where they are, fetching with retries.

Everything about threads, sockets and unpacking is the shell's. Commands carry sequence numbers; those not yet
acknowledged are said again after a reconnect, and the server applies each once. A named session outlives its client:
whoever opens it later goes on with the numbers after those that were used in it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from loom.core.client_absence import Absence
from loom.core.client_events import (
    AskSessions,
    AskStats,
    CancelFutures,
    ClientEffect,
    ClientEvent,
    Close,
    Closed,
    Connected,
    Disconnected,
    FailedFutures,
    Fetch,
    FetchedDirectly,
    FetchFailed,
    FetchResults,
    FromServer,
    Leave,
    Opened,
    Ready,
    RelayPiece,
    ReleaseResults,
    SessionsCame,
    Stalled,
    StartTrace,
    StatsCame,
    Submit,
    Tick,
    ToServer,
    Undeliverable,
)
from loom.core.columns import column, ids_column
from loom.errors import ProtocolError
from loom.ids import LAST_SESSION, SERVER_MADE
from loom.limits import CLIENT_CREDIT_BYTES, LAST_PORT
from loom.messages import (
    CANCELLED_TEXT,
    Acked,
    CancelResults,
    CloseSession,
    FailedResult,
    GetStats,
    JournalStalled,
    LeaveSession,
    ListSessions,
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
    Sessions,
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
    """`token` is the session's secret: random, from the shell. `credit_bytes` is how much may come inline.

    `name`, `who`, `take_over`: as in messages.OpenSession.
    """

    def __init__(
        self,
        token: bytes,
        credit_bytes: int = CLIENT_CREDIT_BYTES,
        name: str = "",
        who: str = "",
        take_over: bool = False,
    ) -> None:
        self.token = token
        self.credit_bytes = credit_bytes
        self.name = name
        self._who = who
        self._take_over = take_over
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
        self._incarnation = 0  # of the server that opened the session last
        self._trace_path = b""  # where traces go, as the user has said
        self._asked: dict[int, AskStats | AskSessions] = {}  # questions that are not answered, by their seqs
        self._absence = Absence()
        self._stalled = False
        self._closing = 0  # seq of the closing command
        self._insists = False  # that is to be acknowledged, over a new link if need be
        self._ends = False  # it is CloseSession
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
                    self._on_messages(event.messages)
                case Submit():
                    self._command(SubmitChunk(self._take_seq(), event.chunk, event.names))
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
                case AskStats() | AskSessions():
                    self._ask(event)
                case StartTrace():
                    self._trace_path = event.path
                    self._command(SetTrace(self._take_seq(), event.path))
                case Close():
                    self._on_close(event.terminate)
                case Leave():
                    self._say_goodbye(LeaveSession(self._take_seq()), insists=True)
                case Connected():
                    self._on_connected()
                case Disconnected():
                    self._on_disconnected(event.reason)
                case Tick():
                    pass
        if not self.closed:
            self._absence.tell(now, self._effects)
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

    def _ask(self, question: AskStats | AskSessions) -> None:
        seq = self._take_seq()
        self._asked[seq] = question
        self._command(ListSessions(seq, question.end) if isinstance(question, AskSessions) else GetStats(seq))

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
        """A session without a name ends without its client, a server that ends is not there any more to say so."""
        if terminate:
            self._say_goodbye(Terminate(self._take_seq()), insists=False)
        else:
            self._say_goodbye(CloseSession(self._take_seq()), insists=self.name != "")

    def _say_goodbye(self, message: CloseSession | LeaveSession | Terminate, insists: bool) -> None:
        self._closing = message.seq
        self._insists = insists
        self._ends = isinstance(message, CloseSession)
        self._command(message)
        if not self.connected and (self.session is None or not insists):
            self._end("")

    def _end(self, reason: str) -> None:
        self.closed = True
        self._effects.append(Closed(reason))

    # -- The link -----------------------------------------------------------------------------------------------------

    def _on_connected(self) -> None:
        self.connected = True
        if self.session is None:
            opening = OpenSession(self.token, self.credit_bytes, self.name, self._who, self._take_over)
            self._to_server.append(opening)
        else:
            credit_bytes = max(0, self.credit_bytes - sum(self.inlined.values()))
            for command in self.unacked:
                if isinstance(command, Release):  # what it frees is in the figure above
                    command.credit_bytes = 0
            acked_seq = self.next_seq - len(self.unacked) - 1
            self._to_server.append(ResumeSession(self.session, self.token, credit_bytes, acked_seq))

    def _on_disconnected(self, reason: str) -> None:
        self.connected = self.attached = False
        self._to_server.clear()
        if self.session is None or (self._closing and not self._insists):
            self._end("" if self._closing else reason)
            return
        connect = self._absence.on_lost(reason, self._now)
        if connect is None:
            within = f"within {self._absence.patience_s} s"
            self._end(f"the connection to the server was lost and did not come back {within}: {reason}")
        else:
            self._effects.append(connect)

    def _on_messages(self, messages: list[Message]) -> None:
        """Nothing that comes after what a server must not say can be trusted, on a new link neither."""
        try:
            for message in messages:
                self._on_message(message)
        except ProtocolError as error:
            self._end(f"the server broke the protocol: {error}")

    def _on_message(self, message: Message) -> None:
        if not (self.attached or isinstance(message, SessionOpened | SessionRefused | JournalStalled)):
            raise ProtocolError(f"{type(message).__name__} came before the session was open")
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
                if self._asked.pop(message.seq, None) is not None:  # else it is answered again after a reconnect
                    self._effects.append(StatsCame(message.values))
            case Sessions():
                self._on_sessions(message)
            case JournalStalled():
                self._on_stalled(message.reason)
            case SessionOpened():
                self._on_session_opened(message)
            case SessionRefused():
                gone = self._ends and not self.attached  # the acknowledgement that it ended was lost with a link
                self._end("" if gone else message.reason)
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__}")

    def _on_session_opened(self, message: SessionOpened) -> None:
        first = self.session is None
        if self.attached or not (first or message.session == self.session):
            raise ProtocolError(f"session {message.session} was opened where that is {self.session}")
        if message.session > LAST_SESSION or message.next_number > SERVER_MADE:
            raise ProtocolError(f"session {message.session} was opened, with {message.next_number} tasks")
        if any(number >= message.next_number for number, _ in message.names):
            raise ProtocolError("a result has a name that no task has made")
        self.session = message.session
        self.attached = True
        if first:
            self._count_from(message.applied_seq)
            self._effects.append(Opened(message.session, message.next_number, message.names, message.ticket))
        self._absence.on_open(message.patience_s, self._now, self._effects)
        self._to_server += self.unacked
        if not first and self._trace_path and message.incarnation != self._incarnation:
            self._command(SetTrace(self._take_seq(), self._trace_path))  # another server knows nothing of it
        self._incarnation = message.incarnation
        if not first:
            self._on_stalled("")  # else this would not have come
            self._ask_again()

    def _count_from(self, applied_seq: int) -> None:
        """Commands that were posted before the session was open follow those that were applied in it before."""
        if not applied_seq:
            return
        for command in self.unacked:
            command.seq += applied_seq  # type: ignore[attr-defined]  # every command has one
        self.next_seq += applied_seq
        self._closing += applied_seq if self._closing else 0
        self._asked = {seq + applied_seq: question for seq, question in self._asked.items()}
        self.void = {number: seq + applied_seq for number, seq in self.void.items()}

    def _ask_again(self) -> None:
        """Answers under way were lost with the link, even to what had been acknowledged."""
        said = self.unacked[0].seq if self.unacked else self.next_seq  # type: ignore[attr-defined]
        for seq in [seq for seq in self._asked if seq < said]:
            question = self._asked.pop(seq)
            if isinstance(question, AskSessions):
                question.end = ""  # that was applied: a session of this name would be another one
            self._ask(question)
        for number, fetching in self.fetching.items():
            fetching.coming = False
            if fetching.located or fetching.relayed:
                fetching.located = True
                self._command(LocateResult(self._take_seq(), number))

    def _on_sessions(self, message: Sessions) -> None:
        question = self._asked.pop(message.seq, None)
        if isinstance(question, AskSessions):
            ended = message.ended or not question.end
            self._effects.append(SessionsCame(question.question, message.sessions, ended))

    def _on_stalled(self, reason: str) -> None:
        if self._stalled != bool(reason):
            self._stalled = bool(reason)
            self._effects.append(Stalled(reason))

    def _on_acked(self, seq: int) -> None:
        if seq >= self.next_seq:
            raise ProtocolError(f"command {seq} was acknowledged, which was never said")
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
            if peer.port > LAST_PORT:
                raise ProtocolError(f"a worker is at port {peer.port}")
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
