"""Workers that can store nothing: others take their tasks, and if need be they are helped out of it.

Where no other worker could run them, such a worker is sent tasks that take large objects in, one by one, so that these
go. One that finds no room for what it makes fails: the next is not tried before something may have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.graph import Graph
from loom.core.node import Node

_LOOK_PAST: Final = 32  # tasks of a line that are looked at
_PAUSE_S: Final = 5.0  # between tasks that are sent to a worker without room


class FullDisks:
    """`all_wait`: tasks wait, and nobody has room for what they would make."""

    def __init__(self, graph: Graph, workers: dict[int, Worker]) -> None:
        self._graph = graph
        self._workers = workers
        self._full: dict[Worker, None] = {}
        self.next_at: float | None = None
        self.all_wait = False

    def set(self, worker: Worker, full: bool) -> None:
        if full:
            self._full[worker] = None
        else:
            self._full.pop(worker, None)

    def run(self, now: float, assign: Callable[[Node, Worker], None]) -> None:
        if not self._full:
            self.next_at = None
            self.all_wait = False
            return
        idle = [
            worker for worker in self._full if not (worker.loads or worker.full or worker.leaving or worker.attaching)
        ]
        found = {worker: node for worker in idle if (node := self._find_for(worker)) is not None}
        none_has_room = len(self._full) == len(self._workers)
        self.all_wait = bool(found) or (none_has_room and any(s.ready for s in self._graph.sessions.values()))
        if not found:
            self.next_at = None
        elif self.next_at is None:
            self.next_at = now + _PAUSE_S
        elif now >= self.next_at:
            self.next_at = now + _PAUSE_S
            for worker, node in found.items():
                if node.state == states.READY:  # not sent to another one of them just now
                    assign(node, worker)

    def _find_for(self, worker: Worker) -> Node | None:
        """A task that takes in what is there, and that no worker with room could run."""
        with_room = [w for w in self._workers.values() if not (w.disk_full or w.leaving)]
        for session in self._graph.sessions.values():
            for queue in session.ready.values():
                for node in queue.consumers(_LOOK_PAST):
                    is_there = any(worker in source.holders() for source in node.inputs)
                    if is_there and worker.suits(node.kind) and not any(w.suits(node.kind) for w in with_room):
                        return node
        return None
