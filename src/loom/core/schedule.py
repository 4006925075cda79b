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
from loom.core.full_disks import FullDisks
from loom.core.graph import Graph
from loom.core.kinds import Kind
from loom.core.node import Node
from loom.core.ready import ReadyQueue, is_root
from loom.core.session import Session

_OBJECT_COST_BYTES: Final = 4096  # what one more object to fetch counts, however small: about its round trip
_EVERYWHERE: Final = 8  # an object with more replicas than this says nothing about where to run
_PASSED_OVER_S: Final = 0.25  # how long a task that asks for more than a core waits until cores are kept for it
_NOTHING: Final = -1 << 64  # below every rank
_LOOK_PAST: Final = 32  # tasks of a line that are looked at for one that can run where the first one cannot
_ASK_AGAIN_S: Final = 0.005  # pause before asking a worker for work again, doubled each time it had none
_ASK_AGAIN_MAX_S: Final = 0.2
_MOST_DOUBLED: Final = 6
_WORTH_MOVING_US: Final = 1_000  # a backlog shorter than this is gone before the answer comes
_RATHER_WAIT_BYTES: Final = 1 << 20  # a task waits for a core where so much of an input is, even if others are idle


class _Line:
    """A ready queue while its tasks are being placed: what had to be passed over stands `aside` until it is closed."""

    __slots__ = ("aside", "queue", "roots")

    def __init__(self, queue: ReadyQueue) -> None:
        self.queue = queue
        self.roots = True  # also those that make data out of next to none
        self.aside: list[Node] = []  # no worker has the time for these, or they have failed where there is room

    def top(self) -> int:
        top = self.queue.top(self.roots)
        return _NOTHING if top is None else top

    def pop(self) -> Node | None:
        return self.queue.pop(self.roots)

    def close(self) -> None:
        while self.aside:
            self.queue.push_back(self.aside.pop())


class Scheduler:
    """Finds assignments; the caller turns `assigned` into messages and empties it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.workers: dict[int, Worker] = {}
        self._trials = Trials(graph, self.workers)
        self.full_disks = FullDisks(graph, self.workers)
        self.room: dict[Worker, None] = {}  # workers with room, in turn
        self._now = 0.0
        self._level_us = 0  # core time used by the session that was served last: start-time fair queueing (Goyal 1996)
        self._backlogged: set[Session] = set()  # sessions that had to wait when all were served last
        self._idle: dict[Worker, None] = {}  # workers that had a free core when last looked at
        self._limited: dict[Worker, None] = {}  # workers that know when they end
        self._pressed: dict[Worker, None] = {}  # workers over their memory budget: only what frees some is sent there
        self.assigned: dict[Worker, list[Node]] = {}
        self.to_ask: list[tuple[Worker, int]] = []  # workers to ask for tasks back, and how many
        self.ask_again_at: float | None = None
        self.unmet: list[tuple[Session, Kind]] = []  # what waits for a worker that is still to come: said once

    def add_worker(self, worker: Worker) -> None:
        self.workers[worker.id] = worker
        self._graph.touched[worker] = None
        if worker.ends_at is not None:
            self._limited[worker] = None

    def remove_worker(self, worker: Worker) -> None:
        del self.workers[worker.id]
        self._limited.pop(worker, None)
        self._pressed.pop(worker, None)
        self.full_disks.set(worker, False)
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
        self.full_disks.run(now, self._assign)
        if self.full_disks.next_at is not None:
            self._wake_at(self.full_disks.next_at)

    def set_condition(self, worker: Worker, over_budget: bool, disk_full: bool) -> None:
        """A worker has said how its memory and its disk are."""
        if over_budget and not worker.over_budget and not worker.asked and worker.n_waiting():
            worker.asked = True
            self.to_ask.append((worker, worker.n_waiting()))  # what frees memory comes first from now on
        worker.over_budget, worker.disk_full = over_budget, disk_full
        worker.set_shut()
        self._graph.touched[worker] = None
        self.full_disks.set(worker, disk_full)
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
            kinds = {node.kind: None for node in session.on_trial if node.kind.is_own}
            unknown = [k for k in kinds if not any(k.symbol in worker.symbols for worker in self.workers.values())]
            for node in list(session.on_trial) if unknown else ():
                if node.kind in unknown:
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
                    self._graph.touched[worker] = None

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
            self._say_unmet(node)
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
        for session in sessions:
            if session not in self._backlogged:  # it was idle, and has saved nothing up by that
                session.used_us = max(session.used_us, self._level_us)
        while sessions and self.room:
            session = min(sessions, key=_used) if len(sessions) > 1 else sessions[0]
            self._level_us = session.used_us
            # a stretch of this session's tasks, then see again whose turn it is
            limit = session.used_us + 2_000 if len(sessions) > 1 else None
            if not self._place_of(session, limit):
                sessions.remove(session)
        self._backlogged = {session for session in self._graph.sessions.values() if session.ready}

    def _place_of(self, session: Session, limit_us: int | None) -> bool:
        """Place tasks of one session; False when it has none that could be placed."""
        if session.has_priorities and len(session.ready) > 1:
            return self._place_by_rank(session, limit_us)
        placed = False
        for key, queue in list(session.ready.items()):
            if len(session.ready) > 1:  # another line comes first next time
                session.ready[key] = session.ready.pop(key)
            line = _Line(queue)
            while (node := queue.pop(line.roots)) is not None:
                worker = self._choose(node)
                if worker is not None:
                    self._place(node, worker)
                    placed = True
                    if not self.room or (limit_us is not None and session.used_us >= limit_us):
                        break
                elif not self._look_behind(line, node):
                    break
            if line.aside:
                line.close()
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
        lines = {key: _Line(queue) for key, queue in session.ready.items()}
        open_lines = list(lines.values())
        while open_lines and self.room and (limit_us is None or session.used_us < limit_us):
            tops = [line.top() for line in open_lines]
            top, line = max(zip(tops, open_lines, strict=True), key=_first)
            if top == _NOTHING:
                break
            node = line.pop()
            assert node is not None
            worker = self._choose(node)
            if worker is not None:
                self._place(node, worker)
                placed = True
            elif not self._look_behind(line, node):
                open_lines.remove(line)
        for key, line in lines.items():
            line.close()
            if not line.queue:
                del session.ready[key]
        return placed and limit_us is not None

    def _place(self, node: Node, worker: Worker) -> None:
        self._assign(node, worker)
        if node.session.passed_over:
            node.session.passed_over.pop(node.kind.queue_key, None)
        if not worker.open:
            self.room.pop(worker, None)

    def _look_behind(self, line: _Line, node: Node) -> bool:
        """A task cannot be placed now: whether one behind it might be. It goes back into its line."""
        is_special = node.number in node.session.tries or any(w.ends_too_soon(node.kind) for w in self._limited)
        if is_special and len(line.aside) < _LOOK_PAST:
            line.aside.append(node)
            self._say_unmet(node)
            return True
        line.queue.push_back(node)
        if line.roots and self._pressed and is_root(node):
            line.roots = False
            return True
        return False

    def _say_unmet(self, node: Node) -> None:
        """Say once of the tasks of a line that none of the present workers can ever run them."""
        key = node.kind.queue_key
        said = node.session.unmet_said
        if self.workers and key not in said and not any(w.suits(node.kind) for w in self.workers.values()):
            said.add(key)
            self.unmet.append((node.session, node.kind))

    def _wake_at(self, deadline: float) -> None:
        self.ask_again_at = min(self.ask_again_at or deadline, deadline)

    def _choose(self, node: Node) -> Worker | None:
        barred = self._barred(node) if self._pressed or node.session.tries else None
        best = self._choose_holder(node) if node.inputs else None
        if barred and best in barred:
            best = None
        if self._idle and (best is None or _keeps_waiting(best)):
            best = self._idle_for(node, barred) or best
        if best is None:
            room = self.room
            for worker in room:
                if worker.can_take(node.kind) and not (barred and worker in barred):
                    best = worker
                    break
            else:
                return None
            del room[best]
            room[best] = None
        return best

    def _barred(self, node: Node) -> set[Worker]:
        """Workers where a task may not go now: where it would take memory that there is not, where it has just failed.

        Where nothing else is done it may all the same, or it never could; so it may where there is no other worker.
        """
        barred = set()
        if self._pressed and is_root(node):
            barred = {worker for worker in self._pressed if worker.n_tasks or worker.n_light}
        tries = node.session.tries.get(node.number)
        if tries is not None and tries.worker is not None:
            others = (w for w in self.workers.values() if w is not tries.worker and not (w.leaving or w.disk_full))
            if any(worker.suits(node.kind) for worker in others):
                barred.add(tries.worker)
        return barred

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
                if worker.is_free_for(kind) and not (barred and worker in barred):
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
        if not worker.asked:  # on its last link
            return
        worker.asked = False
        worker.nothing_to_give = 0 if n_given else min(worker.nothing_to_give + 1, _MOST_DOUBLED)
        worker.ask_after = now + min(_ASK_AGAIN_S * 2**worker.nothing_to_give, _ASK_AGAIN_MAX_S)


def _keeps_waiting(worker: Worker) -> bool:
    """Whether a task sent there now will not start soon."""
    return worker.busy_cpus >= worker.cpus and worker.backlog_us > _WORTH_MOVING_US * worker.cpus


def _backlog(worker: Worker) -> int:
    return worker.backlog_us


def _first(top_and_line: tuple[int, _Line]) -> int:
    return top_and_line[0]


def _used(session: Session) -> int:
    return session.used_us
