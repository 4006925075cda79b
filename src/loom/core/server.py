"""The server's brain: what clients and workers say becomes changes of the graph, and those become messages.

A turn: every event is applied (what workers say in `reports`, what clients say in `clients`), then dynamic tasks are
expanded, then the scheduler places tasks, then what has changed is put into one batch per peer (`news`). A peer that
breaks the protocol loses its link and nothing else happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from loom import __version__
from loom.core.attaching import Attaching
from loom.core.clients import Clients
from loom.core.cluster import Worker, check_registration
from loom.core.crashes import Blame, Crashes
from loom.core.events import (
    CloseLink,
    DisksFull,
    KeepAllocations,
    LinkDown,
    LinkDrained,
    LinkFull,
    LinkUp,
    NoWorkers,
    Received,
    Record,
    ServerEffect,
    ServerEvent,
    Settled,
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
from loom.core.outbox import Outbox
from loom.core.past import Past
from loom.core.questions import Questions
from loom.core.relays import Relays
from loom.core.reports import Reports
from loom.core.restore import restore_session
from loom.core.schedule import Scheduler
from loom.core.session import Session
from loom.core.tracing import Tracing
from loom.errors import ProtocolError
from loom.facts import AllocationsKept, ServerStarted, WorkerAttached, WorkerDetached
from loom.limits import CRASH_LIMIT, LINEAGE_BYTES, LINK_SILENCE_S, PATIENCE_S, REATTACH_S, RESTART_GRACE_S
from loom.messages import GiveBack, Message, OpenSession, RegisterWorker, ResumeSession, WorkerAccepted

_ALONE_S: Final = 5.0  # workers that were just started are on their way


def _no_ticket(_session: int) -> bytes:
    return b""


class ServerCore:
    """`incarnation` must be higher than that of any earlier server whose workers or clients may still be there.

    `silence_s`: how long workers may be silent; the shell watches that. `crash_limit`: of workers that may be lost with
    one task, 0 for no limit. `lineage_bytes`: of specs of tasks that are over. `past`: what the journal says, empty for
    a new one; `server` names it, and that of a new one. Without it nothing is written down. `reattach_s`: how long the
    workers that are in it are waited for. `ticket_of` makes what proves a session to workers.
    """

    def __init__(
        self,
        incarnation: int,
        silence_s: float = LINK_SILENCE_S,
        crash_limit: int = CRASH_LIMIT,
        lineage_bytes: int = LINEAGE_BYTES,
        server: int = 0,
        past: Past | None = None,
        reattach_s: float = REATTACH_S,
        ticket_of: Callable[[int], bytes] = _no_ticket,
    ) -> None:
        self.incarnation = incarnation
        self._server = server
        self._silence_s = silence_s
        self.graph = Graph(lineage_bytes)
        self.scheduler = Scheduler(self.graph)
        self._losses = Losses(self.graph)
        self._crashes = Crashes(self.graph, crash_limit)
        self.workers: dict[int, Worker] = {}
        self.outbox = Outbox()
        self.relays = Relays(self.outbox)
        self.leaving = Leaving(self.graph, self.outbox, self.workers)
        self.attaching = Attaching(self.graph, self._losses, self.outbox, incarnation, reattach_s)
        self.witness: Callable[[Worker, Blame | None], None] | None = None  # is told of lost workers first: for tests
        self._kinds = Kinds()
        self._reports = Reports(
            self.graph, self._losses, self.scheduler, self._kinds, self.relays, self.leaving, self.attaching
        )
        self._expander = Expander(self.graph, self._kinds)
        self._tracing = Tracing(self.graph)
        self.clients = Clients(
            self.graph,
            self._kinds,
            self.workers,
            self.outbox,
            self.relays,
            self._tracing,
            incarnation,
            self.stats,
            ticket_of,
        )
        self.peers = self.clients.peers
        self.questions = Questions(self.graph, self.workers, self.outbox)
        self._alone_at: float | None = None  # when to say that tasks wait and there is no worker
        self.untold = False  # a client is to be told more than goes into one turn
        self._next_worker = 1
        self._effects: list[ServerEffect] = []
        self._now = 0.0
        if past is not None:
            self._restore(past)

    def _restore(self, past: Past) -> None:
        """Go on from what the journal says, and begin to write."""
        for session in past.sessions.values():
            restore_session(self.graph, session, self._kinds.find, self.incarnation, self.attaching.ghost)
        self.clients.next_session, self._next_worker = past.next_session, past.next_worker
        if past.sessions:
            self.attaching.expect(past.workers)
        started = ServerStarted(self._server, self.incarnation, past.next_session, past.next_worker, __version__)
        self.graph.journal = [started]
        if not past.sessions:  # nobody is waited for, then or when it is read again
            self.graph.journal += [WorkerDetached(worker) for worker in past.workers]

    # -- The turn -----------------------------------------------------------------------------------------------------

    def step(self, events: list[ServerEvent], now: float) -> list[ServerEffect]:
        self._now = now
        if self.attaching.settling and self.attaching.settle_at is None:
            self._begin_to_settle()
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
                case KeepAllocations():
                    if self.graph.journal is not None:
                        self.graph.journal.append(AllocationsKept(event.state))
        self._reports.end_turn()
        self.clients.end_turn(now)
        if self.attaching.settling and self.attaching.is_over(now):
            self._settle()
        if self.attaching.settling:
            tell_changes(self.graph, self.workers, self.outbox)
        else:
            self._go_on(now)
        effects: list[ServerEffect] = [*self._tracing.take(), *self.outbox.take(), *self.clients.take()]
        effects += self.questions.take()
        effects += self._effects
        self._effects = []
        if self.graph.journal:
            effects.insert(0, Record(self.graph.journal))
            self.graph.journal = []
        return effects

    def _forget_kinds(self) -> None:
        """Those that no task has; O(all tasks), each time that there are twice as many."""
        used = {node.kind for session in self.graph.sessions.values() for node in session.nodes()}
        left = self._kinds.keep(used)
        for worker in self.workers.values():
            worker.kinds_told &= left

    def _go_on(self, now: float) -> None:
        """Draw the conclusions from what has happened."""
        if self._kinds.are_many:
            self._forget_kinds()
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
        self.untold = False
        for session in self.graph.sessions.values():
            self.untold |= tell_client(session, self.outbox)

    def _begin_to_settle(self) -> None:
        """The server has just started again: clients and workers come back."""
        for session in self.graph.sessions.values():
            if not session.name:
                session.ends_at = self._now + RESTART_GRACE_S

    def _settle(self) -> None:
        missing = list(self.attaching.expected.values())
        n_objects = self.attaching.settle()
        if missing or self.workers:
            self._effects.append(Settled(missing, n_objects))
        self.relays.lose_worker(self.attaching.ghost)

    def next_deadline(self) -> float | None:
        """When `step` wants to be called although nothing happens."""
        deadlines = (
            self.clients.next_deadline(self._now),
            self.scheduler.ask_again_at,
            self._alone_at,
            self.attaching.settle_at,
            self._now if self.untold else None,
        )
        return min([at for at in deadlines if at is not None and at < math.inf], default=None)

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
                    self.clients.on_message(peer, link, message)
                else:
                    self._on_first_message(link, peer, message)
            except ProtocolError as error:
                self._cut(link, str(error))

    def _cut(self, link: int, reason: str) -> None:
        """A peer has broken the protocol; what it has said before stays, as it was checked."""
        self._effects.append(CloseLink(link, reason, at_fault=True))
        peer = self.peers.get(link)
        if isinstance(peer, Session):
            self.clients.cut(peer)
        else:
            self._on_link_down(link)

    def _on_link_down(self, link: int) -> None:
        peer = self.peers.pop(link, None)
        self.outbox.forget(link)
        if isinstance(peer, Worker):
            self._lose_worker(peer, self._crashes.blame(peer))
        elif isinstance(peer, Session):
            self.clients.link_down(peer, self._now)

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
                self.clients.open(link, message)
            case "client", ResumeSession():
                self.clients.resume(link, message, self._now)
            case "worker", RegisterWorker():
                self._register_worker(link, message)
            case "client", _ if self.questions.on_message(link, message):
                pass  # the next one is a first message again
            case _:
                raise ProtocolError(f"a {role} began with {type(message).__name__}")

    # -- Workers ------------------------------------------------------------------------------------------------------

    def _register_worker(self, link: int, message: RegisterWorker) -> None:
        check_registration(message)
        worker = Worker(self._next_worker, link, message, self._now)
        self._next_worker += 1
        self.workers[worker.id] = worker
        self.peers[link] = worker
        self.scheduler.add_worker(worker)
        server, incarnation, before = message.before
        journal = self.graph.journal
        keeps = journal is not None and server == self._server and before > 0
        silence_ms = round(1000 * self._silence_s)
        patience_s = PATIENCE_S if journal is not None else 0
        self.outbox.send(link, WorkerAccepted(worker.id, self._server, self.incarnation, silence_ms, keeps, patience_s))
        if journal is not None:
            journal.append(WorkerAttached(worker.id, worker.name))
        self._tracing.on_worker(worker, self.outbox)
        self._effects.append(WorkerCame(link, worker.name, worker.cpus))
        if server == self._server and incarnation == self.incarnation:
            self._come_back(before, worker.name)
        if keeps:
            self.attaching.begin(worker)

    def _come_back(self, before: int, name: str) -> None:
        """A worker that registers has been `before`, on a link that nobody has missed yet or that was given up."""
        old = self.workers.get(before)
        if old is not None and old.name != name:
            return  # nobody ends the link of another one
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
        if self.graph.journal is not None:
            self.graph.journal.append(WorkerDetached(worker.id))
        self.attaching.lose_worker(worker)
        n_tasks, n_objects = self._losses.lose_worker(worker, blame)
        self._effects.append(WorkerGone(worker.name, worker.leaving, n_tasks, n_objects))
        if blame is not None:
            self._crashes.judge(worker, blame)
        self.leaving.lose_worker(worker)
        self.scheduler.remove_worker(worker)
        self.relays.lose_worker(worker)
        self._tracing.on_worker_lost(worker)

    def stats(self) -> dict[str, int]:
        return {
            "n_workers": len(self.workers),
            "n_cpus": sum(w.cpus for w in self.workers.values()),
            "n_data_objects": self.graph.n_finished,
            "n_sessions": len(self.graph.sessions),
            "n_tasks": sum(s.n_nodes for s in self.graph.sessions.values()),
        }
