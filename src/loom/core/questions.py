"""What those ask who start and end workers: how much waits, who is idle; and that workers go.

They have no session, and nothing that they say changes what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.events import AskedAllocations, ServerEffect
from loom.core.graph import Graph
from loom.core.node import SUSPECT, Node
from loom.core.outbox import Outbox
from loom.messages import (
    AskAllocations,
    AskLoad,
    LeaveWorker,
    Load,
    Message,
    Retired,
    RetireWorkers,
    Waiting,
    WorkerLoad,
)
from loom.resources import Request

_LOOKED_AT: Final = 1000  # tasks of a line: all others are taken to be like them
_LOOKED_AT_ALL: Final = 20_000  # fewer of each where there are many lines: it is asked every second
_LEAST_LOOKED_AT: Final = 10
_MOST_REQUESTS: Final = 256  # in one answer


class Questions:
    """`workers`: all there are, by id."""

    def __init__(self, graph: Graph, workers: dict[int, Worker], outbox: Outbox) -> None:
        self._graph = graph
        self._workers = workers
        self._outbox = outbox
        self._effects: list[ServerEffect] = []

    def take(self) -> list[ServerEffect]:
        """What is to be done besides sending."""
        effects, self._effects = self._effects, []
        return effects

    def on_message(self, link: int, message: Message) -> bool:
        """Whether it was a question."""
        match message:
            case AskLoad():
                self._outbox.send(link, self.load(message.seq))
            case RetireWorkers():
                self._outbox.send(link, Retired(message.seq, self.retire(message.names)))
            case AskAllocations():
                self._effects.append(AskedAllocations(link, message.seq, message.question))
            case _:
                return False
        return True

    def load(self, seq: int) -> Load:
        """O(lines of ready tasks + workers)."""
        waiting: dict[Request, Waiting] = {}
        n_lines = sum(len(session.ready) + 1 for session in self._graph.sessions.values())
        most = max(_LEAST_LOOKED_AT, min(_LOOKED_AT, _LOOKED_AT_ALL // max(1, n_lines)))
        for session in self._graph.sessions.values():
            for (request, _, _), queue in session.ready.items():
                if request in waiting or len(waiting) < _MOST_REQUESTS:
                    queue.prune()  # or a few might not be seen behind many
                    line = waiting.setdefault(request, Waiting(request, 0, 0, 0, 0))
                    _add(line, islice(queue.entries(), most), queue.count())
            for node in islice(session.on_trial, most):
                request = node.kind.request
                if request in waiting or len(waiting) < _MOST_REQUESTS:
                    _add(waiting.setdefault(request, Waiting(request, 0, 0, 0, 0)), iter((node,)), 1, SUSPECT)
        workers = [_load_of(worker) for worker in self._workers.values()]
        return Load(seq, [line for line in waiting.values() if line.count], workers, self._graph.n_finished)

    def retire(self, names: list[str]) -> list[str]:
        """Ask those of them who are there to go; O(workers)."""
        wanted = frozenset(names)
        told = []
        for worker in self._workers.values():
            if worker.name in wanted:
                told.append(worker.name)
                if not worker.leaving:
                    self._outbox.send(worker.link, LeaveWorker())
        return told


def _add(line: Waiting, entries: Iterator[Node], count: int, suspect: int = 0) -> None:
    """`entries` are some of `count`, of which some may be none any more: how many, those that are looked at tell.
    `suspect`: SUSPECT for tasks on trial.
    """
    n_seen = n_ready = n_unknown = 0
    work_us = 0.0
    needs_us = -1.0
    for node in entries:
        n_seen += 1
        if node.state != states.READY or node.flags & SUSPECT != suspect:
            continue
        n_ready += 1
        kind = node.kind
        needs_us = kind.needs_us() if needs_us < 0 else min(needs_us, kind.needs_us())
        durations = kind.durations
        if durations.count:
            work_us += durations.mean_us
        else:
            n_unknown += 1
    if not n_ready:
        return
    factor = max(1.0, count / n_seen)
    needs_ms = round(needs_us / 1000)
    line.needs_ms = min(line.needs_ms, needs_ms) if line.count else needs_ms
    line.count += round(n_ready * factor)
    line.n_unknown += round(n_unknown * factor)
    line.work_ms += round(work_us * factor / 1000)


def _load_of(worker: Worker) -> WorkerLoad:
    n_tasks = sum(sum(load.values()) for load in worker.loads.values())
    left_ms = 0 if worker.left_us is None else max(1, round(worker.left_us / 1000))
    return WorkerLoad(worker.name, worker.cpus, n_tasks, worker.n_given, worker.leaving, left_ms)
