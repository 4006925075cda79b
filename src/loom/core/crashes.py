"""Tasks that may take workers with them.

What was assigned to a worker that was lost is suspected, each time it happens; a worker that left in good order says
nothing. A task that is one such loss away from the limit is on trial: it goes to a core that is free, and no worker has
two of them, so that the next loss says which one it was. At the limit it fails.

A worker that comes back (its link broke, it was stopped for a while) has not died: then the suspicion is taken back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.graph import Graph
from loom.core.kinds import Kind
from loom.core.node import SUSPECT, Node
from loom.core.session import Failure, Session
from loom.ids import number_of, session_of

_REMEMBERED: Final = 64  # lost workers that may still come back


class Blame:
    """What was assigned to one lost worker."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.tasks: list[Node] = []

    def add(self, node: Node) -> None:
        """Before the task is taken back."""
        crashes = node.session.crashes
        count = crashes[node.number] = crashes.get(node.number, 0) + 1
        if count == self._limit - 1:
            node.flags |= SUSPECT
        self.tasks.append(node)


class Crashes:
    """`limit`: of workers lost with one task; 0: there is none."""

    def __init__(self, graph: Graph, limit: int) -> None:
        self._graph = graph
        self._limit = limit
        self._blamed: OrderedDict[int, list[int]] = OrderedDict()  # ids of tasks, by worker

    def blame(self, worker: Worker) -> Blame | None:
        """To be told of what a lost worker had; None where nothing is to be concluded."""
        return Blame(self._limit) if self._limit and not worker.leaving else None

    def judge(self, worker: Worker, blame: Blame) -> None:
        """Fail those for whom it was once too often."""
        self._blamed[worker.id] = [node.id for node in blame.tasks]
        if len(self._blamed) > _REMEMBERED:
            self._blamed.popitem(last=False)
        for node in blame.tasks:
            count = node.session.crashes.get(node.number, 0)
            if count >= self._limit and node.state in states.UNFINISHED:
                error = (
                    f"{count} workers were lost while they had this task, the last one {worker.name}: it is taken for"
                    " the reason and not run again (loom-server --crash-limit says how many it may be)"
                )
                self._graph.fail(node, Failure(node.users_number, worker.name, error))

    def came_back(self, worker: int) -> None:
        """A worker that was lost is there again, under another number: what was blamed for its loss is innocent."""
        for task in self._blamed.pop(worker, ()):
            session = self._graph.sessions.get(session_of(task))
            node = session.find(number_of(task)) if session is not None else None
            if node is None or node.number not in node.session.crashes:
                continue
            crashes = node.session.crashes
            crashes[node.number] -= 1
            if not crashes[node.number]:
                del crashes[node.number]
            if node.flags & SUSPECT:
                node.flags &= ~SUSPECT
                if node in node.session.on_trial:
                    del node.session.on_trial[node]
                    node.session.push_ready(node)


class Trials:
    """Finds places for the tasks on trial: a core that is free, one such task a worker.

    A busy worker is kept for one until it has a core, and takes nothing else meanwhile.
    """

    def __init__(self, graph: Graph, workers: dict[int, Worker]) -> None:
        self._graph = graph
        self._workers = workers
        self._keepers: dict[Worker, Node] = {}

    def run(self, assign: Callable[[Node, Worker], None]) -> None:
        """Assign those for which there is a place; O(workers) besides that."""
        sessions = [session for session in self._graph.sessions.values() if session.on_trial]
        if not sessions and not self._keepers:
            return
        keepers, self._keepers = self._keepers, {}
        free = dict.fromkeys(
            w
            for w in self._workers.values()
            if not (w.full or w.disk_full or w.leaving or w.attaching or _has_trial(w))
        )
        for worker, node in keepers.items():
            waits = node.state == states.READY and node.session in sessions and node in node.session.on_trial
            if waits and worker in free and worker.suits(node.kind):
                self._send(node, worker, free, assign)
        least_us = min((session.used_us for session in self._graph.sessions.values() if session.ready), default=None)
        for session in sessions:
            if least_us is None or session.used_us <= least_us:  # others have their turn, too
                self._place_of(session, free, assign)
        for worker in dict.fromkeys((*keepers, *self._keepers)):
            if worker.id in self._workers:
                worker.kept_for = self._keepers.get(worker)
                worker.set_shut()
                self._graph.touched[worker] = None

    def _place_of(self, session: Session, free: dict[Worker, None], assign: Callable[[Node, Worker], None]) -> None:
        kept = set(self._keepers.values())
        refused: set[Kind] = set()
        for node in list(session.on_trial):
            if not free:
                return
            if node.state != states.READY:
                del session.on_trial[node]
            elif node not in kept and node.kind not in refused:
                suiting = [worker for worker in free if worker.suits(node.kind)]
                if suiting:
                    self._send(node, min(suiting, key=_backlog), free, assign)
                else:
                    refused.add(node.kind)

    def _send(
        self, node: Node, worker: Worker, free: dict[Worker, None], assign: Callable[[Node, Worker], None]
    ) -> None:
        """There, or keep the worker for it."""
        del free[worker]
        worker.refresh()  # what has ended in this turn counts
        if worker.has_free(node.kind):
            del node.session.on_trial[node]
            worker.trial = node
            assign(node, worker)
            self._graph.touched[worker] = None
        else:
            self._keepers[worker] = node


def _has_trial(worker: Worker) -> bool:
    trial = worker.trial
    return trial is not None and trial.worker is worker and trial.state == states.ASSIGNED


def _backlog(worker: Worker) -> int:
    return worker.backlog_us
