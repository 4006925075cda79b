"""Workers that leave in good order: what only they hold and somebody needs is handed over to others first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.graph import Graph
from loom.core.node import INLINED, WANTED, Node
from loom.core.outbox import Outbox
from loom.messages import ObjectAt, StopWorker, TakeObjects

_OBJECTS_A_MESSAGE: Final = 4096


class Leaving:
    """Work to be done at the end of each turn."""

    def __init__(self, graph: Graph, outbox: Outbox) -> None:
        self._graph = graph
        self._outbox = outbox
        self._to_hand_over: dict[Worker, dict[Node, None]] = {}  # what a leaving worker still holds alone
        self._told: set[Worker] = set()  # may go

    def begin(self, worker: Worker, others: Iterable[Worker]) -> None:
        """A worker starts nothing any more; O(all tasks)."""
        if worker.leaving:
            return
        worker.leaving = True
        worker.set_shut()
        self._graph.touched[worker] = None
        self._to_hand_over[worker] = {}
        nodes = (node for session in self._graph.sessions.values() for node in session.nodes())
        self.hand_over(worker, nodes, others)

    def hand_over(self, worker: Worker, nodes: Iterable[Node], others: Iterable[Worker]) -> None:
        """Have others take what `worker` alone holds of these objects and somebody needs."""
        takers = [w for w in others if not (w.leaving or w.disk_full)]
        takers = [w for w in takers if not w.over_budget] or takers
        if not takers:
            return
        given: dict[Worker, list[ObjectAt]] = {taker: [] for taker in takers}
        given_bytes = dict.fromkeys(takers, 0)
        for node in nodes:
            if _only_at(node, worker):
                self._to_hand_over[worker][node] = None
                taker = min(takers, key=lambda w: given_bytes[w])
                given_bytes[taker] += node.size_bytes + 1
                given[taker].append(ObjectAt(node.id, node.size_bytes, [worker.id]))
        for taker, objects in given.items():
            for start in range(0, len(objects), _OBJECTS_A_MESSAGE):
                some = objects[start : start + _OBJECTS_A_MESSAGE]
                self._outbox.send(taker.link, TakeObjects([worker.address], some))

    def lose_worker(self, worker: Worker) -> None:
        self._to_hand_over.pop(worker, None)
        self._told.discard(worker)

    def run(self) -> None:
        """Let go whoever has nothing any more that is needed."""
        for worker, nodes in self._to_hand_over.items():
            for node in list(nodes):
                if _only_at(node, worker):
                    break
                del nodes[node]
            if not nodes and not worker.loads and worker not in self._told:
                self._told.add(worker)
                self._outbox.send(worker.link, StopWorker())


def _only_at(node: Node, worker: Worker) -> bool:
    """Whether an object is needed and nowhere else."""
    if node.state != states.FINISHED or node.worker is not worker or node.replicas:
        return False
    return bool(node.n_pending) or node.flags & (WANTED | INLINED) == WANTED
