"""Which task goes to which worker. Called once a turn, never per event; O(picked) plus O(workers touched).

Tasks whose missing inputs are all made by one worker are sent there ahead. Ready ones go, sessions with the least core
time used first, to the worker with the fewest bytes to move among those with room (each missing object counts some
bytes more, for its round trip); without bytes to move the workers with room take turns. Worker choice matters more
than order (Beranek, Bohm, Cima: Analysis of workflow schedulers in simulated distributed environments, 2022).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.crashes import Trials
from loom.core.graph import Graph
from loom.core.kinds import Kind
from loom.core.node import Node
from loom.core.ready import is_root
from loom.core.session import Session

_OBJECT_COST_BYTES: Final = 4096  # what one more object to fetch counts, however small: about its round trip
_EVERYWHERE: Final = 8  # an object with more replicas than this says nothing about where to run
_PASSED_OVER_S: Final = 0.25  # how long a task that asks for more than a core waits until cores are kept for it
_LOOK_PAST: Final = 32  # tasks that take longer than workers have: so many are looked at for one that does not
_ASK_AGAIN_S: Final = 0.005  # pause before asking a worker for work again, doubled each time it had none
_ASK_AGAIN_MAX_S: Final = 0.2
_WORTH_MOVING_US: Final = 1_000  # a backlog shorter than this is gone before the answer comes
_RATHER_WAIT_BYTES: Final = 1 << 20  # a task waits for a core where so much of an input is, even if others are idle


class Scheduler:
    """Finds assignments; the caller turns `assigned` into messages and empties it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.workers: dict[int, Worker] = {}
        self._trials = Trials(graph, self.workers)
        self.room: dict[Worker, None] = {}  # workers with room, in turn
        self._now = 0.0
        self._idle: dict[Worker, None] = {}  # workers that had a free core when last looked at
        self._limited: dict[Worker, None] = {}  # workers that know when they end
        self._pressed: dict[Worker, None] = {}  # workers over their memory budget: only what frees some is sent there
        self.assigned: dict[Worker, list[Node]] = {}
        self.to_ask: list[tuple[Worker, int]] = []  # workers to ask for tasks back, and how many
        self.ask_again_at: float | None = None
        self.unmet: list[tuple[Session, Kind]] = []  # what waits for a worker that is still to come: said once
        self.disks_full = False  # tasks wait, and no worker can store what they would make

    def add_worker(self, worker: Worker) -> None:
        self.workers[worker.id] = worker
        self._graph.touched[worker] = None
        if worker.ends_at is not None:
            self._limited[worker] = None

    def remove_worker(self, worker: Worker) -> None:
        del self.workers[worker.id]
        self._limited.pop(worker, None)
        self._pressed.pop(worker, None)
        self.room.pop(worker, None)
        self._idle.pop(worker, None)
        self._graph.touched.pop(worker, None)

    def run(self, now: float) -> None:
        self._now = now
        touched = self._graph.touched
        self.ask_again_at = None
        for worker in self._limited:
            worker.look(now)
        self._trials.run(self._assign)
        self._make_way()
        if touched or self.room:
            while touched:
                self._place_ahead(touched)
            self._place_ready()
            while touched:  # assignments make more sendable ahead
                self._place_ahead(touched)
            self._balance(now)
        self.disks_full = (
            bool(self.workers)
            and all(worker.disk_full for worker in self.workers.values())
            and any(session.ready for session in self._graph.sessions.values())
        )

    def set_condition(self, worker: Worker, over_budget: bool, disk_full: bool) -> None:
        """A worker has said how its memory and its disk are."""
        if over_budget and not worker.over_budget and not worker.asked and worker.n_waiting():
            worker.asked = True
            self.to_ask.append((worker, worker.n_waiting()))  # what frees memory comes first from now on
        worker.over_budget, worker.disk_full = over_budget, disk_full
        worker.set_shut()
        self._graph.touched[worker] = None
        if over_budget:
            self._pressed[worker] = None
        else:
            self._pressed.pop(worker, None)

    def fail_unknown(self) -> None:
        """Fail ready tasks of types that no worker has; while there are no workers, one that has them may come."""
        if not self.workers:
            return
        for session in self._graph.sessions.values():
            for key, queue in list(session.ready.items()):
                symbol = key[1]
                if symbol and not any(symbol in worker.symbols for worker in self.workers.values()):
                    del session.ready[key]
                    while (node := queue.pop()) is not None:
                        self._graph.fail_unknown(node)

    # -- Sending ahead ------------------------------------------------------------------------------------------------

    def _place_ahead(self, touched: dict[Worker, None]) -> None:
        for worker in list(touched):
            del touched[worker]
            worker.refresh()
            ahead = worker.ahead
            for _ in range(len(ahead)):
                node = ahead[0]
                if node.state != states.WAITING or self._graph.maker_of_missing(node) is not worker:
                    ahead.popleft()
                elif worker.can_take(node.kind):
                    ahead.popleft()
                    self._assign(node, worker)
                else:
                    break
            if worker.open:
                self.room[worker] = None
                if worker.idle:
                    self._idle[worker] = None
            else:
                self.room.pop(worker, None)

    def _assign(self, node: Node, worker: Worker) -> None:
        self._graph.assign(node, worker)
        batch = self.assigned.get(worker)
        if batch is None:
            self.assigned[worker] = [node]
        else:
            batch.append(node)

    # -- Tasks that others would overtake for ever ---------------------------------------------------------------------

    def _make_way(self) -> None:
        """Assign tasks that have been passed over for long to workers that would be big enough, though they are busy.

        What asks for one core finds room as soon as anything ends. What asks for more may never find it where others
        come first. The worker that has such a task keeps free what it needs; one a worker at a time.
        """
        for session in self._graph.sessions.values():
            for key, queue in list(session.ready.items()):
                request = key[0]
                if request.cpus <= 1 and not request.extras:
                    continue
                node = queue.pop()
                if node is None:
                    del session.ready[key]
                    session.passed_over.pop(key, None)
                    continue
                worker = self._worker_to_keep(session, node)
                if worker is None:
                    queue.push_back(node)
                else:
                    del session.passed_over[key]
                    self._assign(node, worker)
                    if not worker.open:
                        self.room.pop(worker, None)

    def _worker_to_keep(self, session: Session, node: Node) -> Worker | None:
        """The least busy worker for a task whose time has come."""
        kind = node.kind
        key = kind.queue_key
        since = session.passed_over.get(key)
        if since is not None and self._now < since + _PASSED_OVER_S:
            self._wake_at(since + _PASSED_OVER_S)
            return None
        suiting = [worker for worker in self.workers.values() if worker.suits(kind)]
        if not suiting:
            if self.workers and key not in session.unmet_said:
                session.unmet_said.add(key)
                self.unmet.append((session, kind))
            return None
        if since is None:
            session.passed_over[key] = self._now
            self._wake_at(self._now + _PASSED_OVER_S)
            return None
        free = [worker for worker in suiting if not worker.shut and not worker.is_overcommitted()]
        return min(free, key=_backlog, default=None)

    # -- Ready tasks --------------------------------------------------------------------------------------------------

    def _place_ready(self) -> None:
        """Hand out ready tasks while there is room."""
        sessions = [s for s in self._graph.sessions.values() if s.ready]
        while sessions and self.room:
            session = min(sessions, key=_used) if len(sessions) > 1 else sessions[0]
            # a stretch of this session's tasks, then see again whose turn it is
            limit = session.used_us + 2_000 if len(sessions) > 1 else None
            if not self._place_of(session, limit):
                sessions.remove(session)

    def _place_of(self, session: Session, limit_us: int | None) -> bool:
        """Place tasks of one session; False when it has none that could be placed."""
        if session.has_priorities and len(session.ready) > 1:
            return self._place_by_rank(session, limit_us)
        placed = False
        for key, queue in list(session.ready.items()):
            if len(session.ready) > 1:  # another line comes first next time
                session.ready[key] = session.ready.pop(key)
            roots = True
            aside: list[Node] = []  # nobody has the time for these
            while True:
                node = queue.pop(roots)
                if node is None:
                    break
                worker = self._choose(node)
                if worker is None:
                    if self._limited and len(aside) < _LOOK_PAST:
                        aside.append(node)
                        continue
                    queue.push_back(node)
                    if not (roots and self._pressed and is_root(node)):
                        break
                    roots = False
                    continue
                self._assign(node, worker)
                if session.passed_over:
                    session.passed_over.pop(key, None)
                placed = True
                if not worker.open:
                    self.room.pop(worker, None)
                if not self.room or (limit_us is not None and session.used_us >= limit_us):
                    break
            for node in reversed(aside):
                queue.push_back(node)
            if not queue:
                del session.ready[key]
            if not self.room:
                return False
            if limit_us is not None and session.used_us >= limit_us:
                return True
        return placed and limit_us is not None

    def _place_by_rank(self, session: Session, limit_us: int | None) -> bool:
        """The same where tasks have priorities: the first of all lines is next, as long as it can be placed."""
        placed = False
        lines = dict.fromkeys(session.ready, True)  # whether roots of it can be placed, too
        while lines and self.room and (limit_us is None or session.used_us < limit_us):
            tops = {key: session.ready[key].top(roots) for key, roots in lines.items()}
            ranks = {key: top for key, top in tops.items() if top is not None}
            if not ranks:
                break
            key = max(ranks, key=lambda key: ranks[key])
            queue = session.ready[key]
            node = queue.pop(lines[key])
            assert node is not None
            worker = self._choose(node)
            if worker is None:
                queue.push_back(node)
                if lines[key] and self._pressed and is_root(node):
                    lines[key] = False
                else:
                    del lines[key]
                continue
            self._assign(node, worker)
            session.passed_over.pop(key, None)
            placed = True
            if not worker.open:
                self.room.pop(worker, None)
        for key in [key for key, queue in session.ready.items() if not queue]:
            del session.ready[key]
        return placed and limit_us is not None

    def _wake_at(self, deadline: float) -> None:
        self.ask_again_at = min(self.ask_again_at or deadline, deadline)

    def _choose(self, node: Node) -> Worker | None:
        barred = self._pressed if self._pressed and is_root(node) else None
        best = self._choose_holder(node) if node.inputs else None
        if barred and best is not None and _is_barred(best, barred):
            best = None
        if self._idle and (best is None or _keeps_waiting(best)):
            best = self._idle_for(node, barred) or best
        if best is None:
            room = self.room
            for worker in room:
                if worker.can_take(node.kind) and not (barred and _is_barred(worker, barred)):
                    best = worker
                    break
            else:
                return None
            del room[best]
            room[best] = None
        return best

    def _idle_for(self, node: Node, barred: Collection[Worker] | None) -> Worker | None:
        """A worker with as many free cores as the task asks for; they take turns.

        None also where so much would have to be moved there that the task had better wait.
        """
        kind = node.kind
        if not kind.cpus or any(source.size_bytes >= _RATHER_WAIT_BYTES for source in node.inputs):
            return None
        idle = self._idle
        for _ in range(len(idle)):
            worker = next(iter(idle))
            del idle[worker]
            if worker.idle:
                idle[worker] = None
                if worker.is_free_for(kind) and not (barred and _is_barred(worker, barred)):
                    return worker
        return None

    def _choose_holder(self, node: Node) -> Worker | None:
        """The worker with room that holds most of the inputs' bytes; of equal ones the least loaded."""
        room = self.room
        kind = node.kind
        best: Worker | None = None
        if len(node.inputs) == 1:
            for holder in node.inputs[0].holders()[: _EVERYWHERE + 1]:
                if holder in room and (best is None or holder.backlog_us < best.backlog_us) and holder.can_take(kind):
                    best = holder
        else:
            held: dict[Worker, int] = {}
            for source in node.inputs:
                worker, replicas = source.worker, source.replicas
                if worker is not None:
                    held[worker] = held.get(worker, 0) + source.size_bytes + _OBJECT_COST_BYTES
                if replicas and len(replicas) <= _EVERYWHERE:
                    for worker in replicas:
                        held[worker] = held.get(worker, 0) + source.size_bytes + _OBJECT_COST_BYTES
            most = 0
            for worker, held_bytes in held.items():
                if held_bytes >= most and worker in room and worker.can_take(kind):
                    if best is not None and held_bytes == most and best.backlog_us <= worker.backlog_us:
                        continue
                    best, most = worker, held_bytes
        return best

    # -- Balance ------------------------------------------------------------------------------------------------------

    def _balance(self, now: float) -> None:
        """Where a core is idle although all that can be placed is placed, ask the longest queue to give some back."""
        idle = [w for w in self.room if w.idle]
        idle_cpus = sum(w.cpus - w.busy_cpus for w in idle)
        if not idle_cpus or len(self.workers) < 2:
            return
        victim: Worker | None = None
        for worker in self.workers.values():
            if worker.asked or not worker.n_waiting() or worker.backlog_us + worker.queued_us < _WORTH_MOVING_US:
                continue
            if not any(other.is_free_for(kind) for kind in worker.kinds() for other in idle if other is not worker):
                continue
            if now < worker.ask_after:
                self._wake_at(worker.ask_after)
            elif victim is None or worker.backlog_us > victim.backlog_us:
                victim = worker
        if victim is not None:
            victim.asked = True
            spare = victim.n_waiting()
            self.to_ask.append((victim, max(1, spare * idle_cpus // (idle_cpus + victim.cpus))))

    @staticmethod
    def answered(worker: Worker, n_given: int, now: float) -> None:
        """A worker has answered a request to give back.

        What it gave may well be placed there again, next to its inputs: there is a pause in any case.
        """
        worker.asked = False
        worker.nothing_to_give = 0 if n_given else worker.nothing_to_give + 1
        worker.ask_after = now + min(_ASK_AGAIN_S * 2**worker.nothing_to_give, _ASK_AGAIN_MAX_S)


def _is_barred(worker: Worker, pressed: Collection[Worker]) -> bool:
    """Whether a root may not go there: it would take memory. Where nothing else is done one may, or none ever could."""
    return worker in pressed and bool(worker.n_tasks or worker.n_light)


def _keeps_waiting(worker: Worker) -> bool:
    """Whether a task sent there now will not start soon."""
    return worker.busy_cpus >= worker.cpus and worker.backlog_us > _WORTH_MOVING_US * worker.cpus


def _backlog(worker: Worker) -> int:
    return worker.backlog_us


def _used(session: Session) -> int:
    return session.used_us
