"""The server's brain: what clients and workers say becomes changes of the graph, and those become messages.

A turn: every event is applied (`_on_<message>`), then the scheduler places tasks, then what has changed is put into
one batch per peer. A peer that breaks the protocol loses its link and nothing else happens.
"""

from __future__ import annotations

from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.columns import column, ids_column
from loom.core.events import (
    CloseLink,
    LinkDown,
    LinkDrained,
    LinkFull,
    LinkUp,
    Received,
    Send,
    ServerEffect,
    ServerEvent,
    Shutdown,
)
from loom.core.graph import Graph
from loom.core.kinds import Kind, label_prefix
from loom.core.node import INLINED, WANTED, Node
from loom.core.schedule import Scheduler
from loom.core.session import Failure, Session
from loom.errors import ProtocolError
from loom.ids import NUMBER_BITS, SERVER_MADE, number_of, session_of
from loom.limits import MAX_ERROR_CHARS, MAX_KINDS, MAX_LOCATIONS, MAX_SESSIONS, SESSION_GRACE_S
from loom.messages import (
    Acked,
    CancelTasks,
    CloseSession,
    DropObjects,
    FailedResult,
    FinishedTask,
    ForgetSession,
    GetStats,
    GiveBack,
    LocateResult,
    Message,
    ObjectAt,
    ObjectsHeld,
    OpenSession,
    PeerAddress,
    PlanChunk,
    ReadyResult,
    RecallTasks,
    RegisterWorker,
    RelayedObject,
    RelayFetch,
    RelayObject,
    RelayPiece,
    Release,
    ResultsFailed,
    ResultsReady,
    ResumeSession,
    RunTask,
    RunTasks,
    SessionOpened,
    SessionRefused,
    Stats,
    StopWorker,
    SubmitChunk,
    TaskKind,
    TaskRedirected,
    TasksFailed,
    TasksFinished,
    TasksGivenBack,
    Terminate,
    WorkerAccepted,
)
from loom.resources import Request

ALIAS_SYMBOL: Final = "loom/base/same"  # a redirected task: its object is its input's
_RESULTS_A_MESSAGE: Final = 4096
_PAGES_A_TURN: Final = 16  # of a closed session taken apart in one turn: some milliseconds


class ServerCore:
    """`incarnation` must be higher than that of any earlier server whose workers or clients may still be there."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.graph = Graph()
        self.scheduler = Scheduler(self.graph)
        self.workers: dict[int, Worker] = {}
        self._peers: dict[int, Session | Worker | str] = {}  # by link; the role until the first message came
        self._next_session = 1
        self._next_worker = 1
        self._kinds: dict[tuple[str, str, Request], Kind] = {}
        self._alias = self._kind_of(ALIAS_SYMBOL, "", Request(0))
        self._out: dict[int, list[Message]] = {}
        self._effects: list[ServerEffect] = []
        self._dying: list[Session] = []
        self._relays: dict[int, list[Session]] = {}  # object id -> who waits for it
        self._now = 0.0

    # -- The turn -----------------------------------------------------------------------------------------------------

    def step(self, events: list[ServerEvent], now: float) -> list[ServerEffect]:
        self._now = now
        for event in events:
            match event:
                case Received():
                    self._on_received(event.link, event.messages)
                case LinkUp():
                    self._peers[event.link] = event.role
                case LinkDown():
                    self._on_link_down(event.link)
                case LinkFull():
                    self._on_link_full(event.link, True)
                case LinkDrained():
                    self._on_link_full(event.link, False)
        self._end_sessions()
        self._flush_graph()
        self.scheduler.run(now)
        self._flush_assignments()
        self._flush_news()
        effects: list[ServerEffect] = [Send(link, messages) for link, messages in self._out.items()]
        effects += self._effects
        self._out = {}
        self._effects = []
        return effects

    def next_deadline(self) -> float | None:
        """When `step` wants to be called although nothing happens."""
        deadlines = [s.detached_at + SESSION_GRACE_S for s in self.graph.sessions.values() if s.detached_at is not None]
        if self._dying:
            deadlines.append(self._now)
        if self.scheduler.ask_again_at is not None:
            deadlines.append(self.scheduler.ask_again_at)
        return min(deadlines, default=None)

    def _send(self, link: int, message: Message) -> None:
        queue = self._out.get(link)
        if queue is None:
            self._out[link] = [message]
        else:
            queue.append(message)

    def _on_received(self, link: int, messages: list[Message]) -> None:
        for message in messages:
            peer = self._peers.get(link)
            if peer is None:  # cut earlier in this turn
                return
            try:
                if isinstance(peer, Worker):
                    self._on_worker_message(peer, message)
                elif isinstance(peer, Session):
                    self._on_client_message(peer, message)
                else:
                    self._on_first_message(link, peer, message)
            except ProtocolError as error:
                self._cut(link, str(error))

    def _cut(self, link: int, reason: str) -> None:
        peer = self._peers.get(link)
        self._effects.append(CloseLink(link, reason))
        if isinstance(peer, Session) and peer.link == link:
            self._end_session(peer)  # what it said cannot be trusted: no resuming
            self._peers.pop(link, None)
        else:
            self._on_link_down(link)

    def _on_link_down(self, link: int) -> None:
        peer = self._peers.pop(link, None)
        self._out.pop(link, None)
        if isinstance(peer, Worker):
            self._lose_worker(peer)
        elif isinstance(peer, Session) and peer.link == link:
            peer.link = None
            peer.detached_at = self._now

    def _on_link_full(self, link: int, full: bool) -> None:
        peer = self._peers.get(link)
        if isinstance(peer, Worker):
            peer.full = full
            self.graph.touched[peer] = None
        elif isinstance(peer, Session):
            peer.full = full

    def _on_first_message(self, link: int, role: str, message: Message) -> None:
        match role, message:
            case "client", OpenSession():
                self._open_session(link, message)
            case "client", ResumeSession():
                self._resume_session(link, message)
            case "worker", RegisterWorker():
                worker = Worker(self._next_worker, link, message)
                self._next_worker += 1
                self.workers[worker.id] = worker
                self._peers[link] = worker
                self.scheduler.add_worker(worker)
                self._send(link, WorkerAccepted(worker.id, self.incarnation))
            case _:
                raise ProtocolError(f"a {role} began with {type(message).__name__}")

    # -- Sessions -----------------------------------------------------------------------------------------------------

    def _open_session(self, link: int, message: OpenSession) -> None:
        if len(self.graph.sessions) >= MAX_SESSIONS:
            self._send(link, SessionRefused(f"the server has {MAX_SESSIONS} sessions already"))
            return
        session = Session(self._next_session, message.token, message.credit_bytes, link, self.incarnation)
        others = self.graph.sessions.values()
        session.used_us = min((s.used_us for s in others if s.ready), default=0)
        self._next_session += 1
        self.graph.sessions[session.id] = session
        self._peers[link] = session
        self._send(link, SessionOpened(session.id, self.incarnation))

    def _resume_session(self, link: int, message: ResumeSession) -> None:
        session = self.graph.sessions.get(message.session)
        if session is None or session.token != message.token:
            self._send(link, SessionRefused("the session is over: the server restarted or the grace period has passed"))
            return
        if session.link is not None:  # the old link has not been noticed to be dead
            self._peers.pop(session.link, None)
            self._effects.append(CloseLink(session.link, "its session was resumed on another link"))
        session.link = link
        session.full = False
        session.detached_at = None
        session.credit_bytes = message.credit_bytes
        session.unacked = True
        session.peers_told.clear()
        session.results_to_tell.clear()
        session.failures_to_tell.clear()
        self._peers[link] = session
        self._send(link, SessionOpened(session.id, self.incarnation))
        for node in session.nodes():
            if node.flags & WANTED:
                self._tell_again(node)

    def _tell_again(self, node: Node) -> None:
        if node.state == states.FINISHED:
            node.session.results_to_tell.append((node, None))
        elif node.state == states.FAILED:
            failure = node.session.failures[node.number]
            told = FailedResult(node.number, failure.task, failure.worker, failure.error)
            node.session.failures_to_tell.append(told)
        elif node.state == states.DROPPED:
            node.flags &= ~INLINED
            self.graph.need(node)

    def _end_session(self, session: Session) -> None:
        self.graph.close(session)
        self._dying.append(session)
        for worker in self.workers.values():
            if worker.loads.pop(session, None) is not None:
                self.graph.touched[worker] = None
            self._send(worker.link, ForgetSession(session.id))

    def _end_sessions(self) -> None:
        for session in [s for s in self.graph.sessions.values() if s.detached_at is not None]:
            if session.detached_at is not None and self._now >= session.detached_at + SESSION_GRACE_S:
                self._end_session(session)
        for _ in range(_PAGES_A_TURN):
            if not self._dying:
                break
            if not self.graph.dismantle(self._dying[-1]):
                self._dying.pop()

    # -- What clients say ---------------------------------------------------------------------------------------------

    def _on_client_message(self, session: Session, message: Message) -> None:
        match message:
            case SubmitChunk():
                if self._is_new(session, message.seq):
                    self._on_submit(session, message.chunk)
            case Release():
                if self._is_new(session, message.seq):
                    self._on_release(session, message)
            case GetStats():
                if self._is_new(session, message.seq) and session.link is not None:
                    self._send(session.link, Stats(message.seq, self.stats()))
            case LocateResult():
                if self._is_new(session, message.seq):
                    node = session.find(message.number)
                    if node is not None and node.flags & WANTED:
                        self._tell_again(node)
            case RelayFetch():
                if self._is_new(session, message.seq):
                    self._on_relay_fetch(session, message.number)
            case CloseSession():
                if session.link is not None:
                    self._send(session.link, Acked(message.seq))
                    self._peers.pop(session.link)
                    self._effects.append(CloseLink(session.link, "the client closed its session"))
                self._end_session(session)
            case Terminate():
                self._on_terminate(session, message)
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
        last = self.graph.add_chunk(session, chunk, self._kind_of)
        session.next_number = last.number + 1
        if session.next_number >= SERVER_MADE:
            raise ProtocolError("the session has used up its task numbers")

    def _kind_of(self, symbol: str, label: str, request: Request) -> Kind:
        key = (symbol, label_prefix(label), request)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= MAX_KINDS:
                key = (symbol, "", request)
                kind = self._kinds.get(key)
                if kind is not None:
                    return kind
            kind = self._kinds[key] = Kind(len(self._kinds), symbol, key[1], request)
        return kind

    def _on_release(self, session: Session, message: Release) -> None:
        session.credit_bytes += message.credit_bytes
        for number in column(message.numbers, "Q"):
            node = session.find(number)
            if node is None or not node.flags & WANTED:
                raise ProtocolError(f"task {number} was released twice or never submitted")
            self.graph.release(node)

    def _on_relay_fetch(self, session: Session, number: int) -> None:
        node = session.find(number)
        if node is None or node.state != states.FINISHED or node.worker is None:
            if session.link is not None:
                self._send(session.link, RelayedObject(number, b"", b"", True, "the object is not there now"))
            return
        waiting = self._relays.setdefault(node.id, [])
        waiting.append(session)
        if len(waiting) == 1:
            self._send(node.worker.link, RelayObject(node.id))

    def _on_terminate(self, session: Session, message: Terminate) -> None:
        if session.link is not None:
            self._send(session.link, Acked(message.seq))
        for worker in self.workers.values():
            self._send(worker.link, StopWorker())
        self._effects.append(Shutdown())

    def stats(self) -> dict[str, int]:
        return {
            "n_workers": len(self.workers),
            "n_cpus": sum(w.cpus for w in self.workers.values()),
            "n_data_objects": self.graph.n_finished,
            "n_sessions": len(self.graph.sessions),
            "n_tasks": sum(s.n_nodes for s in self.graph.sessions.values()),
        }

    # -- What workers say ---------------------------------------------------------------------------------------------

    def _on_worker_message(self, worker: Worker, message: Message) -> None:
        match message:
            case TasksFinished():
                self._on_tasks_finished(worker, message.tasks)
            case TasksFailed():
                for failed in message.tasks:
                    node = self._running(worker, failed.task, failed.attempt)
                    if node is not None:
                        error = failed.error[:MAX_ERROR_CHARS]
                        self.graph.fail(node, Failure(number_of(failed.task), worker.name, error))
            case TaskRedirected():
                self._on_task_redirected(worker, message)
            case ObjectsHeld():
                for object_id in column(message.objects, "Q"):
                    self._on_object_held(worker, object_id)
            case TasksGivenBack():
                self._on_tasks_given_back(worker, message)
            case RelayPiece():
                self._on_relay_piece(message)
            case _:
                raise ProtocolError(f"a worker sent {type(message).__name__}")

    def _find(self, task: int) -> Node | None:
        session = self.graph.sessions.get(session_of(task))
        return session.find(number_of(task)) if session is not None else None

    def _running(self, worker: Worker, task: int, attempt: int) -> Node | None:
        """The task if this worker holds this attempt of it; a stale fact gives None."""
        node = self._find(task)
        if node is None or node.state != states.ASSIGNED or node.worker is not worker or node.attempt != attempt:
            return None
        return node

    def _on_tasks_finished(self, worker: Worker, tasks: list[FinishedTask]) -> None:
        finish = self.graph.finish
        for done in tasks:
            node = self._running(worker, done.task, done.attempt)
            if node is None:
                self._on_object_held(worker, done.task)
                continue
            if node.n_unmet:
                raise ProtocolError(f"task {done.task} finished before its inputs")
            node.kind.measured(done.duration_us)
            finish(node, done.size_bytes, done.packed)

    def _on_task_redirected(self, worker: Worker, message: TaskRedirected) -> None:
        node = self._running(worker, message.task, message.attempt)
        if node is None:
            return
        session = node.session
        chunk = _renumber(message.chunk, session.next_server_made, node)
        session.next_server_made += len(chunk.flags)
        self.graph.redirect(node, chunk, self._kind_of, self._alias)

    def _on_object_held(self, worker: Worker, object_id: int) -> None:
        node = self._find(object_id)
        if node is None or node.state in (states.DROPPED, states.FAILED):
            if session_of(object_id) in self.graph.sessions:
                self.graph.to_drop.append((worker, object_id))
        elif node.worker is not worker or node.state != states.FINISHED:
            if node.replicas is None:
                node.replicas = [worker]
            elif worker not in node.replicas:
                node.replicas.append(worker)

    def _on_tasks_given_back(self, worker: Worker, message: TasksGivenBack) -> None:
        tasks, attempts = column(message.tasks, "Q"), column(message.attempts, "Q")
        if len(tasks) != len(attempts):
            raise ProtocolError("columns of TasksGivenBack differ in length")
        given = 0
        for task, attempt in zip(tasks, attempts, strict=True):
            node = self._running(worker, task, attempt)
            if node is not None:
                given += 1
                self.graph.give_back(node)
        if message.answer:
            self.scheduler.answered(worker, given, self._now)

    def _on_relay_piece(self, message: RelayPiece) -> None:
        waiting = self._relays.get(message.object, [])
        if message.last:
            self._relays.pop(message.object, None)
        piece = RelayedObject(number_of(message.object), message.header, message.piece, message.last, message.error)
        for session in waiting:
            if session.link is not None:
                self._send(session.link, piece)

    def _lose_worker(self, worker: Worker) -> None:
        del self.workers[worker.id]
        self._out.pop(worker.link, None)
        self.graph.lose_worker(worker)
        self.scheduler.remove_worker(worker)
        for object_id, sessions in list(self._relays.items()):
            del self._relays[object_id]  # told to ask again: who still holds it is another question
            for session in sessions:
                if session.link is not None:
                    lost = RelayedObject(number_of(object_id), b"", b"", True, "a worker was lost on the way")
                    self._send(session.link, lost)

    # -- What has changed ---------------------------------------------------------------------------------------------

    def _flush_graph(self) -> None:
        graph = self.graph
        for pairs, message in (
            (graph.to_cancel, CancelTasks),
            (graph.to_recall, RecallTasks),
            (graph.to_drop, DropObjects),
        ):
            if not pairs:
                continue
            by_worker: dict[Worker, list[int]] = {}
            for worker, task in pairs:
                by_worker.setdefault(worker, []).append(task)
            pairs.clear()
            for worker, ids in by_worker.items():
                if worker.id in self.workers:
                    self._send(worker.link, message(ids_column(ids)))
        for session in graph.sessions.values():
            if session.unacked and session.link is not None:
                session.unacked = False
                self._send(session.link, Acked(session.applied_seq))

    def _flush_assignments(self) -> None:
        for worker, nodes in self.scheduler.assigned.items():
            self._send(worker.link, self._run_tasks(worker, nodes))
        self.scheduler.assigned.clear()
        for worker, count in self.scheduler.to_ask:
            self._send(worker.link, GiveBack(count))
        self.scheduler.to_ask.clear()

    def _run_tasks(self, worker: Worker, nodes: list[Node]) -> RunTasks:
        kinds: list[TaskKind] = []
        peers: list[PeerAddress] = []
        missing: dict[int, ObjectAt] = {}
        tasks = []
        for node in nodes:
            kind = node.kind
            if kind.number not in worker.kinds_told:
                worker.kinds_told.add(kind.number)
                kinds.append(TaskKind(kind.number, kind.symbol, kind.label, kind.request))
            base = node.session.id << NUMBER_BITS
            inputs = node.inputs
            for source in inputs:
                if source.worker is worker or source.state != states.FINISHED:
                    continue  # held, or being made there
                if source.replicas and worker in source.replicas:
                    continue
                holders = source.holders()[:MAX_LOCATIONS]
                missing[base | source.number] = ObjectAt(
                    base | source.number, source.size_bytes, [h.id for h in holders]
                )
                self._introduce(holders, worker.peers_told, peers)
            ids = [base | inputs[0].number] if len(inputs) == 1 and _takes_once(node) else node.input_ids()
            flags = 1 if node.flags & WANTED else 0
            tasks.append(RunTask(base | node.number, node.attempt, kind.number, flags, node.config(), ids))
        return RunTasks(kinds, peers, list(missing.values()), tasks)

    @staticmethod
    def _introduce(holders: list[Worker], told: set[int], peers: list[PeerAddress]) -> None:
        for holder in holders:
            if holder.id not in told:
                told.add(holder.id)
                peers.append(holder.address)

    def _flush_news(self) -> None:
        for session in self.graph.sessions.values():
            if session.link is None or session.full:
                continue
            if session.failures_to_tell:
                self._send(session.link, ResultsFailed(session.failures_to_tell))
                session.failures_to_tell = []
            if session.results_to_tell:
                news, session.results_to_tell = session.results_to_tell, []
                for start in range(0, len(news), _RESULTS_A_MESSAGE):
                    self._tell_results(session, session.link, news[start : start + _RESULTS_A_MESSAGE])

    def _tell_results(self, session: Session, link: int, news: list[tuple[Node, bytes | None]]) -> None:
        results = []
        peers: list[PeerAddress] = []
        for node, packed in news:
            worker = node.worker
            if node.state != states.FINISHED or not node.flags & WANTED or worker is None:
                continue
            if packed is not None:
                if len(packed) > session.credit_bytes:
                    packed = None
                else:
                    session.credit_bytes -= len(packed)
                    node.flags |= INLINED
            if packed is None and worker.id not in session.peers_told:
                self._introduce([worker], session.peers_told, peers)
            results.append(ReadyResult(node.number, node.size_bytes, worker.id, packed))
        if results:
            self._send(link, ResultsReady(results, peers))


def _takes_once(node: Node) -> bool:
    chunk = node.chunk
    row = node.number - chunk.first
    return chunk.input_ends[row] - (chunk.input_ends[row - 1] if row else 0) == 1


def _renumber(plan: PlanChunk, base: int, node: Node) -> PlanChunk:
    """A redirection's plan with numbers of this session; its low inputs are positions among `node`'s inputs."""
    if plan.first != SERVER_MADE:
        raise ProtocolError("a redirection's plan is numbered wrongly")
    own = node.chunk.input_numbers(node.number - node.chunk.first)
    numbers = []
    for number in column(plan.inputs, "Q"):
        if number >= SERVER_MADE:
            numbers.append(number - SERVER_MADE + base)
        elif number < len(own):
            numbers.append(own[number])
        else:
            raise ProtocolError(f"a redirection refers to input {number} of a task with {len(own)}")
    return PlanChunk(
        base,
        base,
        plan.symbols,
        plan.labels,
        plan.requests,
        plan.symbol_of,
        plan.label_of,
        plan.request_of,
        bytes(len(plan.flags)),
        plan.levels,
        plan.consumers,
        plan.input_ends,
        ids_column(numbers),
        plan.config_ends,
        plan.configs,
    )
