"""The server's brain: what clients and workers say becomes changes of the graph, and those become messages.

A turn: every event is applied (`_on_<message>`; what workers say in `reports`), then dynamic tasks are expanded, then
the scheduler places tasks, then what has changed is put into one batch per peer (`news`). A peer that breaks the
protocol loses its link and nothing else happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.columns import column
from loom.core.crashes import Blame, Crashes
from loom.core.events import (
    CloseLink,
    DisksFull,
    LinkDown,
    LinkDrained,
    LinkFull,
    LinkUp,
    NoWorkers,
    Received,
    ServerEffect,
    ServerEvent,
    Shutdown,
    TasksWait,
    WorkerCame,
    WorkerGone,
)
from loom.core.expand import Expander
from loom.core.graph import Graph
from loom.core.kinds import Kinds
from loom.core.leaving import Leaving
from loom.core.losses import Losses
from loom.core.news import assign_tasks, tell_changes, tell_client
from loom.core.node import CANCELLED, INLINED, WANTED, WRITING, Node
from loom.core.outbox import Outbox
from loom.core.relays import Relays
from loom.core.reports import Reports
from loom.core.schedule import Scheduler
from loom.core.session import Session
from loom.core.tracing import Tracing
from loom.errors import ProtocolError
from loom.ids import SERVER_MADE, task_id
from loom.limits import CRASH_LIMIT, LINEAGE_BYTES, LINK_SILENCE_S, MAX_SESSIONS, SESSION_GRACE_S
from loom.messages import (
    Acked,
    CancelResults,
    CloseSession,
    FailedResult,
    ForgetSession,
    GetStats,
    GiveBack,
    LocateResult,
    Message,
    OpenSession,
    PlanChunk,
    RegisterWorker,
    RelayFetch,
    Release,
    ResumeSession,
    SessionOpened,
    SessionRefused,
    SetTrace,
    Stats,
    StopWorker,
    SubmitChunk,
    Terminate,
    WorkerAccepted,
)

_ALONE_S: Final = 5.0  # workers that were just started are on their way
_PAGES_A_TURN: Final = 16  # of a closed session taken apart in one turn: some milliseconds


class ServerCore:
    """`incarnation` must be higher than that of any earlier server whose workers or clients may still be there.

    `silence_s`: how long workers may be silent; the shell watches that. `crash_limit`: of workers that may be lost with
    one task, 0 for no limit. `lineage_bytes`: of specs of tasks that are over.
    """

    def __init__(
        self,
        incarnation: int,
        silence_s: float = LINK_SILENCE_S,
        crash_limit: int = CRASH_LIMIT,
        lineage_bytes: int = LINEAGE_BYTES,
    ) -> None:
        self.incarnation = incarnation
        self._silence_s = silence_s
        self.graph = Graph(lineage_bytes)
        self.scheduler = Scheduler(self.graph)
        self._losses = Losses(self.graph)
        self._crashes = Crashes(self.graph, crash_limit)
        self.workers: dict[int, Worker] = {}
        self.outbox = Outbox()
        self.relays = Relays(self.outbox)
        self.leaving = Leaving(self.graph, self.outbox, self.workers)
        self.dying: list[Session] = []  # closed sessions, taken apart in steps
        self.peers: dict[int, Session | Worker | str] = {}  # by link; the role until the first message came
        self.witness: Callable[[Worker, Blame | None], None] | None = None  # is told of lost workers first: for tests
        self._kinds = Kinds()
        self._reports = Reports(self.graph, self._losses, self.scheduler, self._kinds, self.relays, self.leaving)
        self._expander = Expander(self.graph, self._kinds)
        self._tracing = Tracing(self.graph)
        self._alone_at: float | None = None  # when to say that tasks wait and there is no worker
        self._next_session = 1
        self._next_worker = 1
        self._effects: list[ServerEffect] = []
        self._now = 0.0

    # -- The turn -----------------------------------------------------------------------------------------------------

    def step(self, events: list[ServerEvent], now: float) -> list[ServerEffect]:
        self._now = now
        for event in events:
            match event:
                case Received():
                    self._on_received(event.link, event.messages)
                case LinkUp():
                    self.peers[event.link] = event.role
                case LinkDown():
                    self._on_link_down(event.link)
                case LinkFull():
                    self._on_link_full(event.link, True)
                case LinkDrained():
                    self._on_link_full(event.link, False)
        self._reports.end_turn()
        self._end_sessions()
        if self.graph.to_expand:
            self._expander.run(sum(w.cpus for w in self.workers.values()))
        self.scheduler.fail_unknown()
        tell_changes(self.graph, self.workers, self.outbox)
        self.leaving.run()
        waited = self.scheduler.full_disks.all_wait
        self.scheduler.run(now)
        if self.scheduler.full_disks.all_wait and not waited:
            self._effects.append(DisksFull())
        self._look_for_workers()
        self._assign()
        for session in self.graph.sessions.values():
            tell_client(session, self.outbox)
        effects: list[ServerEffect] = [*self._tracing.take(), *self.outbox.take(), *self._effects]
        self._effects = []
        return effects

    def next_deadline(self) -> float | None:
        """When `step` wants to be called although nothing happens."""
        deadlines = [s.detached_at + SESSION_GRACE_S for s in self.graph.sessions.values() if s.detached_at is not None]
        if self.dying:
            deadlines.append(self._now)
        deadlines += [at for at in (self.scheduler.ask_again_at, self._alone_at) if at is not None and at < math.inf]
        return min(deadlines, default=None)

    def _look_for_workers(self) -> None:
        """Say after some time, once, that tasks wait and there is no worker."""
        if self.workers or not any(session.ready for session in self.graph.sessions.values()):
            self._alone_at = None
        elif self._alone_at is None:
            self._alone_at = self._now + _ALONE_S
        elif self._alone_at <= self._now:
            self._alone_at = math.inf
            self._effects.append(NoWorkers())

    def _assign(self) -> None:
        for worker, nodes in self.scheduler.assigned.items():
            assign_tasks(worker, nodes, self.outbox)
        self.scheduler.assigned.clear()
        for worker, count in self.scheduler.to_ask:
            self.outbox.send(worker.link, GiveBack(count))
        self.scheduler.to_ask.clear()
        for session, kind in self.scheduler.unmet:
            self._effects.append(TasksWait(session.id, kind.symbol, kind.request, kind.needs_us() / 1e6))
        self.scheduler.unmet.clear()

    # -- Links --------------------------------------------------------------------------------------------------------

    def _on_received(self, link: int, messages: list[Message]) -> None:
        for message in messages:
            peer = self.peers.get(link)
            if peer is None:  # cut earlier in this turn
                return
            try:
                if isinstance(peer, Worker):
                    self._reports.on_message(peer, message, self._now)
                elif isinstance(peer, Session):
                    self._on_client_message(peer, link, message)
                else:
                    self._on_first_message(link, peer, message)
            except ProtocolError as error:
                self._cut(link, str(error))

    def _cut(self, link: int, reason: str) -> None:
        self._effects.append(CloseLink(link, reason, at_fault=True))
        peer = self.peers.get(link)
        if isinstance(peer, Session):
            self._end_session(peer)  # what it said cannot be trusted: no resuming
        else:
            self._on_link_down(link)

    def _on_link_down(self, link: int) -> None:
        peer = self.peers.pop(link, None)
        self.outbox.forget(link)
        if isinstance(peer, Worker):
            self._lose_worker(peer, self._crashes.blame(peer))
        elif isinstance(peer, Session):
            peer.link = None
            peer.detached_at = self._now
            self.relays.detach(peer)

    def _on_link_full(self, link: int, full: bool) -> None:
        peer = self.peers.get(link)
        if isinstance(peer, Worker):
            peer.full = full
            peer.set_shut()
            self.graph.touched[peer] = None
        elif isinstance(peer, Session):
            peer.full = full
        if not full and isinstance(peer, Session | Worker):
            self.relays.on_drained(peer)

    def _on_first_message(self, link: int, role: str, message: Message) -> None:
        match role, message:
            case "client", OpenSession():
                self._open_session(link, message)
            case "client", ResumeSession():
                self._resume_session(link, message)
            case "worker", RegisterWorker():
                self._register_worker(link, message)
            case _:
                raise ProtocolError(f"a {role} began with {type(message).__name__}")

    # -- Workers ------------------------------------------------------------------------------------------------------

    def _register_worker(self, link: int, message: RegisterWorker) -> None:
        worker = Worker(self._next_worker, link, message, self._now)
        self._next_worker += 1
        self.workers[worker.id] = worker
        self.peers[link] = worker
        self.scheduler.add_worker(worker)
        self.outbox.send(link, WorkerAccepted(worker.id, self.incarnation, round(1000 * self._silence_s)))
        self._tracing.on_worker(worker, self.outbox)
        self._effects.append(WorkerCame(link, worker.name, worker.cpus))
        incarnation, before = message.before
        if incarnation == self.incarnation:
            self._come_back(before)

    def _come_back(self, before: int) -> None:
        """A worker that registers has been `before`, on a link that nobody has missed yet or that was given up."""
        old = self.workers.get(before)
        if old is not None:
            self._effects.append(CloseLink(old.link, "its worker has come back on another link"))
            self.peers.pop(old.link)
            self.outbox.forget(old.link)
            self._lose_worker(old, None)
        self._crashes.came_back(before)

    def _lose_worker(self, worker: Worker, blame: Blame | None) -> None:
        if self.witness is not None:
            self.witness(worker, blame)
        del self.workers[worker.id]
        n_tasks, n_objects = self._losses.lose_worker(worker, blame)
        self._effects.append(WorkerGone(worker.name, worker.leaving, n_tasks, n_objects))
        if blame is not None:
            self._crashes.judge(worker, blame)
        self.leaving.lose_worker(worker)
        self.scheduler.remove_worker(worker)
        self.relays.lose_worker(worker)
        self._tracing.on_worker_lost(worker)

    # -- Sessions -----------------------------------------------------------------------------------------------------

    def _open_session(self, link: int, message: OpenSession) -> None:
        if len(self.graph.sessions) >= MAX_SESSIONS:
            self.outbox.send(link, SessionRefused(f"the server has {MAX_SESSIONS} sessions already"))
            return
        session = Session(self._next_session, message.token, message.credit_bytes, link, self.incarnation)
        self._next_session += 1
        self.graph.sessions[session.id] = session
        self.peers[link] = session
        self.outbox.send(link, SessionOpened(session.id, self.incarnation))

    def _resume_session(self, link: int, message: ResumeSession) -> None:
        session = self.graph.sessions.get(message.session)
        if session is None or session.token != message.token:
            reason = "the session is over: the server restarted or the grace period has passed"
            self.outbox.send(link, SessionRefused(reason))
            return
        if session.link is not None:  # the old link has not been noticed to be dead
            self._effects.append(CloseLink(session.link, "its session was resumed on another link"))
            self._on_link_down(session.link)
        session.link = link
        session.full = False
        session.detached_at = None
        session.credit_bytes = message.credit_bytes
        session.unacked = True
        session.peers_told.clear()
        session.results_to_tell.clear()
        session.failures_to_tell.clear()
        self.peers[link] = session
        self.outbox.send(link, SessionOpened(session.id, self.incarnation))
        for node in session.nodes():
            if node.flags & WANTED:
                self._tell_again(node)

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
            self.graph.need(node)

    def _end_session(self, session: Session) -> None:
        if session.link is not None:
            self.peers.pop(session.link)
            session.link = None
        self.graph.close(session)
        self._tracing.on_session_end(session, self.workers.values(), self.outbox)
        self.relays.forget(session)
        self.dying.append(session)
        for worker in self.workers.values():
            self.graph.forget_at(worker, session)
            self.graph.touched[worker] = None
            self.outbox.send(worker.link, ForgetSession(session.id))

    def _end_sessions(self) -> None:
        for session in [s for s in self.graph.sessions.values() if s.detached_at is not None]:
            if session.detached_at is not None and self._now >= session.detached_at + SESSION_GRACE_S:
                self._end_session(session)
        for _ in range(_PAGES_A_TURN):
            if not self.dying:
                break
            if not self.graph.dismantle(self.dying[-1]):
                self.dying.pop()

    # -- What clients say ---------------------------------------------------------------------------------------------

    def _on_client_message(self, session: Session, link: int, message: Message) -> None:
        match message:
            case SubmitChunk():
                if self._is_new(session, message.seq):
                    self._on_submit(session, message.chunk)
            case Release():
                if self._is_new(session, message.seq):
                    self._on_release(session, message)
            case GetStats():
                self._is_new(session, message.seq)
                self.outbox.send(link, Stats(message.seq, self.stats()))
            case LocateResult():
                if self._is_new(session, message.seq):
                    node = session.find(message.number)
                    if node is not None and node.flags & WANTED:
                        self._tell_again(node)
            case RelayFetch():
                if self._is_new(session, message.seq):
                    object_id = task_id(session.id, message.number)
                    self.relays.ask(session, session.find(message.number), object_id)
            case CancelResults():
                if self._is_new(session, message.seq):
                    self._on_cancel(session, message)
            case SetTrace():
                if self._is_new(session, message.seq):
                    self._tracing.start(session, message.path, self.workers.values(), self.outbox)
            case CloseSession():
                self.outbox.send(link, Acked(message.seq))
                self._effects.append(CloseLink(link, "the client closed its session"))
                self._end_session(session)
            case Terminate():
                self._is_new(session, message.seq)
                for worker in self.workers.values():
                    self.outbox.send(worker.link, StopWorker())
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

    def _on_submit(self, session: Session, chunk: PlanChunk) -> None:
        if chunk.first != session.next_number or chunk.plan_first > chunk.first:
            raise ProtocolError(f"a plan chunk begins at {chunk.first}, not at {session.next_number}")
        last = self.graph.add_chunk(session, chunk, self._kinds.find)
        session.next_number = last.number + 1
        session.plan_open = chunk.more
        if session.next_number >= SERVER_MADE:
            raise ProtocolError("the session has used up its task numbers")

    def _on_release(self, session: Session, message: Release) -> None:
        session.credit_bytes += message.credit_bytes
        for number in column(message.numbers, "Q"):
            node = session.find(number)
            if node is None or not node.flags & (WANTED | CANCELLED):
                raise ProtocolError(f"task {number} was released twice or never submitted")
            self.graph.release(node)

    def _on_cancel(self, session: Session, message: CancelResults) -> None:
        for number in column(message.numbers, "Q"):
            node = session.find(number)
            if node is None or not node.flags & WANTED:
                raise ProtocolError(f"task {number} was cancelled twice, or it is no result")
            self.graph.cancel(node)

    def stats(self) -> dict[str, int]:
        return {
            "n_workers": len(self.workers),
            "n_cpus": sum(w.cpus for w in self.workers.values()),
            "n_data_objects": self.graph.n_finished,
            "n_sessions": len(self.graph.sessions),
            "n_tasks": sum(s.n_nodes for s in self.graph.sessions.values()),
        }
