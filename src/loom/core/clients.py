"""What clients say, applied to the graph; and how long their sessions live.

A session without a name ends with its client, or when that does not come back soon. One with a name stays until it is
ended, and one client after the other may use it: whoever takes it up has what has a name in it.
"""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest
from typing import Final, NamedTuple

from loom.core import states
from loom.core.cluster import Worker
from loom.core.columns import column, ids_column, is_plain_text
from loom.core.events import CloseLink, ServerEffect, Shutdown
from loom.core.graph import Graph
from loom.core.kinds import Kinds
from loom.core.node import CANCELLED, INLINED, WANTED, WRITING, Node
from loom.core.outbox import Outbox
from loom.core.relays import Relays
from loom.core.session import Session
from loom.core.tracing import Tracing
from loom.errors import ProtocolError
from loom.facts import (
    PlanAbandoned,
    ResultsCancelled,
    ResultsReleased,
    SessionBegan,
    SessionEnded,
    SessionTaken,
    WorkerDetached,
)
from loom.ids import LAST_SESSION, NUMBER_MASK, SERVER_MADE, task_id
from loom.limits import (
    MAX_CREDIT_BYTES,
    MAX_NAMED_RESULTS,
    MAX_SESSIONS,
    MAX_TOKEN_BYTES,
    PATIENCE_S,
    SESSION_GRACE_S,
)
from loom.messages import (
    CANCELLED_TEXT,
    RESULT,
    Acked,
    CancelResults,
    CloseSession,
    FailedResult,
    ForgetSession,
    GetStats,
    LeaveSession,
    ListSessions,
    LocateResult,
    Message,
    OpenSession,
    RelayFetch,
    Release,
    ResultsFailed,
    ResumeSession,
    SessionInfo,
    SessionOpened,
    SessionRefused,
    Sessions,
    SetTrace,
    Stats,
    StopWorker,
    SubmitChunk,
    Terminate,
)

_PAGES_A_TURN: Final = 16  # of a closed session taken apart in one turn: some milliseconds
_MOST_QUESTIONS: Final = 256  # about sessions that one client may have open
_ANSWERS_A_TURN: Final = 4
_NAMES_CHARS: Final = 1 << 20  # of all results in one answer; those of later sessions are left out
_LAST_SEQ: Final = 1 << 62  # a client that follows in a named session has numbers for commands left
_OVER: Final = "the session is over: it was ended, its grace period has passed, or another client has taken it up"


class _Question(NamedTuple):
    """Who wants to know which sessions there are, over which link, by which command."""

    session: Session
    link: int
    seq: int
    ended: bool


class Clients:
    """`workers` and `peers` are the server core's own; `dying`: closed sessions, taken apart in steps."""

    def __init__(
        self,
        graph: Graph,
        kinds: Kinds,
        workers: dict[int, Worker],
        outbox: Outbox,
        relays: Relays,
        tracing: Tracing,
        incarnation: int,
        figures: Callable[[], dict[str, int]],
        ticket_of: Callable[[int], bytes],
    ) -> None:
        self.peers: dict[int, Session | Worker | str] = {}  # by link; the role until the first message came
        self.dying: list[Session] = []
        self.next_session = 1
        self._graph = graph
        self._kinds = kinds
        self._workers = workers
        self._outbox = outbox
        self._relays = relays
        self._tracing = tracing
        self._incarnation = incarnation
        self._figures = figures
        self._ticket_of = ticket_of
        self._effects: list[ServerEffect] = []
        self._questions: list[_Question] = []

    def take(self) -> list[ServerEffect]:
        """What is to be done besides sending."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self, now: float) -> float | None:
        deadlines = [session.ends_at for session in self._graph.sessions.values() if session.ends_at is not None]
        if self.dying or any(not one.session.full for one in self._questions):
            deadlines.append(now)
        return min(deadlines, default=None)

    def end_turn(self, now: float) -> None:
        """End sessions whose clients have not come back, and take apart some of what has ended."""
        for session in [s for s in self._graph.sessions.values() if s.ends_at is not None]:
            if session.ends_at is not None and now >= session.ends_at:
                self.end(session)
        for _ in range(_PAGES_A_TURN):
            if not self.dying:
                break
            if not self._graph.dismantle(self.dying[-1]):
                self.dying.pop()
        if self._questions:
            self._answer()

    # -- Sessions -----------------------------------------------------------------------------------------------------

    def open(self, link: int, message: OpenSession) -> None:
        if not 0 < len(message.token) <= MAX_TOKEN_BYTES:
            raise ProtocolError(f"the secret of a session has {len(message.token)} bytes")
        if not is_plain_text(message.who):
            raise ProtocolError(f"a client calls itself {message.who!r:.100}")
        message.credit_bytes = min(message.credit_bytes, MAX_CREDIT_BYTES)
        if message.name:
            session = self._called(message.name)
            if session is not None:
                self._take_up(session, link, message)
                return
        if len(self._graph.sessions) >= MAX_SESSIONS:
            self._outbox.send(link, SessionRefused(f"the server has {MAX_SESSIONS} sessions already"))
            return
        if self.next_session >= LAST_SESSION:
            self._outbox.send(link, SessionRefused("the server has used up its numbers of sessions; start another one"))
            return
        session = Session(self.next_session, message.token, message.credit_bytes, link, self._incarnation)
        self.next_session += 1
        session.name, session.who = message.name, message.who
        self._graph.sessions[session.id] = session
        self.peers[link] = session
        if self._graph.journal is not None:
            self._graph.journal.append(SessionBegan(session.id, session.token, session.name, [], session.who))
        self._welcome(session, link)

    def _called(self, name: str) -> Session | None:
        return next((session for session in self._graph.sessions.values() if session.name == name), None)

    def _take_up(self, session: Session, link: int, message: OpenSession) -> None:
        """Another client continues a session: of what was there it has what has a name."""
        if session.link is not None:
            if not message.take_over:
                reason = f"session {session.name!r} is used by {session.who}; with take_over=True you get it from there"
                self._outbox.send(link, SessionRefused(reason))
                return
            self._outbox.send(session.link, SessionRefused(f"{message.who} has taken the session over"))
            self._let_link_go(session, "its session was taken over")
        # There may be a trace of a client that has gone without a word.
        self._tracing.on_session_end(session, self._workers.values(), self._outbox)
        self._release_unnamed(session)
        session.token, session.who = message.token, message.who
        if self._graph.journal is not None:
            self._graph.journal.append(SessionTaken(session.id, session.token, session.who))
        self._attach(session, link, message.credit_bytes)
        cancelled = [node.number for node in session.nodes() if node.flags & CANCELLED]
        if cancelled:  # whoever resumes a session knows, this client does not
            told = [FailedResult(number, number, "", CANCELLED_TEXT) for number in cancelled]
            self._outbox.send(link, ResultsFailed(told))

    def resume(self, link: int, message: ResumeSession, now: float) -> None:
        session = self._graph.sessions.get(message.session)
        if session is None or not session.token or not compare_digest(session.token, message.token):
            self._outbox.send(link, SessionRefused(_OVER))
            return
        if message.acked_seq > max(session.applied_seq, _LAST_SEQ):
            raise ProtocolError(f"command {message.acked_seq} was acknowledged, as a client says")
        if session.link is not None:  # the old link has not been noticed to be dead
            self._effects.append(CloseLink(session.link, "its session was resumed on another link"))
            self._outbox.forget(session.link)
            self.peers.pop(session.link)
            self.link_down(session, now)
        session.applied_seq = max(session.applied_seq, message.acked_seq)  # those that leave nothing in a journal
        self._attach(session, link, min(message.credit_bytes, MAX_CREDIT_BYTES))

    def _attach(self, session: Session, link: int, credit_bytes: int) -> None:
        """From now on this is the link of the session's client, who is told of all its results again."""
        session.link = link
        session.full = False
        session.ends_at = None
        session.credit_bytes = credit_bytes
        session.unacked = True
        session.peers_told.clear()
        session.results_to_tell.clear()
        session.failures_to_tell.clear()
        self.peers[link] = session
        self._welcome(session, link)
        for node in session.nodes():
            if node.flags & WANTED:
                self._tell_again(node)

    def _welcome(self, session: Session, link: int) -> None:
        patience_s = PATIENCE_S if self._graph.journal is not None else int(SESSION_GRACE_S)
        names = [(number, name) for name, number in session.names.items()]
        opened = SessionOpened(
            session.id,
            self._incarnation,
            patience_s,
            session.applied_seq,
            session.next_number,
            names,
            self._ticket_of(session.id),
        )
        self._outbox.send(link, opened)

    def link_down(self, session: Session, now: float) -> None:
        """The client may come back; it has a while where the session has no name."""
        session.link = None
        if not session.name:
            session.ends_at = now + SESSION_GRACE_S
        self._relays.detach(session)

    def _let_link_go(self, session: Session, why: str) -> None:
        """The session goes on without this client. What was said goes out."""
        if session.link is not None:
            self._effects.append(CloseLink(session.link, why))
            self.peers.pop(session.link)
            self._go_on_without(session)

    def _go_on_without(self, session: Session) -> None:
        session.link = None
        self._relays.detach(session)
        self._tracing.on_session_end(session, self._workers.values(), self._outbox)

    def _release_unnamed(self, session: Session) -> None:
        """Nobody will ever ask for results without a name, nor send the rest of a plan."""
        journal = self._graph.journal
        if session.plan_open:
            if journal is not None:
                journal.append(PlanAbandoned(session.id))
            self._graph.abandon_plan(session)
        unnamed = [n for n in session.nodes() if n.flags & (WANTED | CANCELLED) and n.number not in session.named]
        if unnamed and journal is not None:
            journal.append(ResultsReleased(session.id, 0, ids_column([node.number for node in unnamed])))
        for node in unnamed:
            self._graph.release(node)

    def _tell_again(self, node: Node) -> None:
        """The client does not have this result, or may not have it."""
        node.flags &= ~INLINED
        if node.flags & WRITING:
            pass  # the client hears of it when its checkpoint is in place
        elif node.state == states.FINISHED:
            node.session.results_to_tell.append((node, None))
        elif node.state == states.FAILED:
            failure = node.session.failures[node.number]
            told = FailedResult(node.number, failure.task, failure.worker, failure.error)
            node.session.failures_to_tell.append(told)
        elif node.state == states.DROPPED:
            self._graph.need(node)

    def cut(self, session: Session) -> None:
        """Its client has broken the protocol: no resuming. One with a name is there for whoever comes next."""
        if session.name:
            if session.link is not None:
                self.peers.pop(session.link)
            self._go_on_without(session)
            self._release_unnamed(session)
            session.token = b""
            if self._graph.journal is not None:
                self._graph.journal.append(SessionTaken(session.id, session.token, session.who))
        else:
            self.end(session)

    def end(self, session: Session) -> None:
        if session.link is not None:
            self.peers.pop(session.link)
            session.link = None
        if self._graph.journal is not None:
            self._graph.journal.append(SessionEnded(session.id))
        self._graph.close(session)
        self._tracing.on_session_end(session, self._workers.values(), self._outbox)
        self._relays.forget(session)
        self.dying.append(session)
        for worker in self._workers.values():
            self._graph.forget_at(worker, session)
            self._graph.touched[worker] = None
            self._outbox.send(worker.link, ForgetSession(session.id))

    # -- Commands -----------------------------------------------------------------------------------------------------

    def on_message(self, session: Session, link: int, message: Message) -> None:
        match message:
            case SubmitChunk():
                if self._is_new(session, message.seq):
                    self._on_submit(session, message)
            case Release():
                if self._is_new(session, message.seq):
                    self._on_release(session, message)
            case GetStats():
                self._is_new(session, message.seq)
                self._outbox.send(link, Stats(message.seq, self._figures()))
            case LocateResult():
                if self._is_new(session, message.seq):
                    node = session.find(message.number)
                    if node is not None and node.flags & WANTED:
                        self._tell_again(node)
            case RelayFetch():
                if self._is_new(session, message.seq):
                    if message.number > NUMBER_MASK:  # with the session's it would be the id of an object of another's
                        raise ProtocolError(f"there is no task {message.number}")
                    object_id = task_id(session.id, message.number)
                    self._relays.ask(session, session.find(message.number), object_id)
            case CancelResults():
                if self._is_new(session, message.seq):
                    self._on_cancel(session, message)
            case SetTrace():
                if self._is_new(session, message.seq):
                    self._tracing.start(session, message.path, self._workers.values(), self._outbox)
            case ListSessions():
                self._on_list(session, link, message, self._is_new(session, message.seq))
            case LeaveSession():
                self._is_new(session, message.seq)
                self._outbox.send(link, Acked(message.seq))
                if session.name:
                    self._release_unnamed(session)
                    self._let_link_go(session, "the client left its session")
                else:
                    self._effects.append(CloseLink(link, "the client closed its session"))
                    self.end(session)
            case CloseSession():
                self._outbox.send(link, Acked(message.seq))
                self._effects.append(CloseLink(link, "the client closed its session"))
                self.end(session)
            case Terminate():
                self._is_new(session, message.seq)
                if not session.name:  # it ends with its client, also for a server that starts from the journal later
                    self._outbox.send(link, Acked(message.seq))
                    self.end(session)
                for worker in self._workers.values():
                    self._outbox.send(worker.link, StopWorker())
                    if self._graph.journal is not None:  # a server that starts again need not wait for it
                        self._graph.journal.append(WorkerDetached(worker.id))
                self._effects.append(Shutdown())
            case _:
                raise ProtocolError(f"a client sent {type(message).__name__} in a session")

    @staticmethod
    def _is_new(session: Session, seq: int) -> bool:
        """Commands are applied once, in order; one that comes again after a reconnect is only acknowledged."""
        session.unacked = True
        if seq <= session.applied_seq:
            return False
        if seq != session.applied_seq + 1:
            raise ProtocolError(f"command {seq} came after {session.applied_seq}")
        session.applied_seq = seq
        return True

    def _on_submit(self, session: Session, message: SubmitChunk) -> None:
        chunk = message.chunk
        if chunk.first != session.next_number:
            raise ProtocolError(f"a plan chunk begins at {chunk.first}, not at {session.next_number}")
        plan_first = session.plan_first if session.plan_open else chunk.first
        if chunk.plan_first != plan_first:
            raise ProtocolError(f"a chunk is of a plan that begins at {chunk.plan_first}, not at {plan_first}")
        if chunk.first + len(chunk.flags) >= SERVER_MADE:
            raise ProtocolError("the session has used up its task numbers")
        names = {name: number for number, name in message.names}
        named = dict(message.names)
        if not len(names) == len(named) == len(message.names) or not session.names.keys().isdisjoint(names):
            raise ProtocolError("a name is given twice, or a task has two")
        if len(session.names) + len(names) > MAX_NAMED_RESULTS:
            raise ProtocolError(f"more than {MAX_NAMED_RESULTS} results of a session have names")
        for number, name in message.names:
            row = number - chunk.first
            if not 0 <= row < len(chunk.flags) or not chunk.flags[row] & RESULT:
                raise ProtocolError(f"the name {name!r} is given to task {number}, which is no result of its chunk")
        last = self._graph.add_chunk(session, chunk, self._kinds.find, None, message.seq, message.names)
        session.names.update(names)
        session.named.update(named)
        session.next_number = last.number + 1
        session.plan_first = plan_first
        session.plan_open = chunk.more

    def _on_release(self, session: Session, message: Release) -> None:
        nodes = _all_flagged(session, message.numbers, WANTED | CANCELLED)
        if nodes is None:
            raise ProtocolError("a task was released twice or never submitted")
        session.credit_bytes = min(session.credit_bytes + message.credit_bytes, MAX_CREDIT_BYTES)
        if nodes and self._graph.journal is not None:
            self._graph.journal.append(ResultsReleased(session.id, message.seq, message.numbers))
        for node in nodes:
            name = session.named.pop(node.number, None)
            if name is not None:
                del session.names[name]
            self._graph.release(node)

    def _on_cancel(self, session: Session, message: CancelResults) -> None:
        nodes = _all_flagged(session, message.numbers, WANTED)
        if nodes is None:
            raise ProtocolError("a task was cancelled twice, or it is no result")
        if self._graph.journal is not None:
            self._graph.journal.append(ResultsCancelled(session.id, message.seq, message.numbers))
        for node in nodes:
            self._graph.cancel(node)

    def _on_list(self, session: Session, link: int, message: ListSessions, is_new: bool) -> None:
        """Where the question comes again, what it was to end has ended."""
        ended = self._called(message.end) if message.end and is_new else None
        if ended is session:
            raise ProtocolError("a session is closed, not ended, by its own client")
        if ended is not None:
            if ended.link is not None:
                self._outbox.send(ended.link, SessionRefused("the session was ended from outside"))
                self._let_link_go(ended, "its session was ended from outside")
            self.end(ended)
        if sum(one.link == link for one in self._questions) >= _MOST_QUESTIONS:
            raise ProtocolError(f"more than {_MOST_QUESTIONS} questions wait for an answer")
        self._questions.append(_Question(session, link, message.seq, ended is not None or not is_new))

    def _answer(self) -> None:
        """Say which sessions there are. Some bytes ask for some MiB, so only to who takes what it is sent."""
        self._questions = [one for one in self._questions if one.session.link == one.link]
        now = [one for one in self._questions if not one.session.full][:_ANSWERS_A_TURN]
        if now:
            infos = []
            chars_left = _NAMES_CHARS
            for session in [session for session in self._graph.sessions.values() if session.name]:
                infos.append(_info(session, chars_left))
                chars_left -= sum(map(len, infos[-1].names))
            for one in now:
                self._questions.remove(one)
                self._outbox.send(one.link, Sessions(one.seq, infos, one.ended))


def _all_flagged(session: Session, numbers: bytes, flags: int) -> list[Node] | None:
    """These tasks (Q column); None where one of them stands there twice, is not there or has none of the flags."""
    own = column(numbers, "Q").tolist()
    nodes = [node for number in own if (node := session.find(number)) is not None and node.flags & flags]
    return nodes if len(nodes) == len(set(own)) == len(own) else None


def _info(session: Session, names_chars: int) -> SessionInfo:
    """With the names of results as long as they have no more characters than these."""
    unfinished = sum([1 for node in session.nodes() if node.state in states.UNFINISHED])
    who = session.who if session.link is not None else ""
    names = []
    for name in sorted(session.names):
        names_chars -= len(name)
        if names_chars < 0:
            break
        names.append(name)
    return SessionInfo(session.id, session.name, who, session.n_nodes, unfinished, names)
