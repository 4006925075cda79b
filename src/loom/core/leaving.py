"""Workers that leave in good order: what only they hold and somebody needs is handed over to others first."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapreplace
from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.graph import Graph
from loom.core.news import object_at
from loom.core.node import WANTED, Node
from loom.core.outbox import Outbox
from loom.messages import ObjectAt, StopWorker, TakeObjects

_OBJECTS_A_MESSAGE: Final = 4096
_LOOKS: Final = 3  # at all that there is, before a worker goes: others may have left meanwhile, or taken nothing


class _Departure:
    """`waits_for`: what others have still to take, and who; `looks`: how often all objects may still be looked at."""

    def __init__(self) -> None:
        self.waits_for: dict[Node, Worker] = {}
        self.looks = _LOOKS
        self.may_go = False


class Leaving:
    """`workers`: all there are, by id."""

    def __init__(self, graph: Graph, outbox: Outbox, workers: dict[int, Worker]) -> None:
        self._graph = graph
        self._outbox = outbox
        self._workers = workers
        self._departures: dict[Worker, _Departure] = {}

    def begin(self, worker: Worker) -> None:
        """A worker starts nothing any more; O(all tasks)."""
        if not worker.leaving:
            worker.leaving = True
            worker.set_shut()
            self._graph.touched[worker] = None
            self._departures[worker] = _Departure()
            self._look(worker)
            self._ask_others(worker)

    def finished(self, worker: Worker, nodes: Iterable[Node]) -> None:
        """A leaving worker has made these."""
        self._hand_over(worker, nodes, None)

    def not_taken(self, taker: Worker, node: Node) -> None:
        """A worker could not take what it was to take: another one may."""
        for worker, departure in self._departures.items():
            if departure.waits_for.get(node) is taker:
                del departure.waits_for[node]
                self._hand_over(worker, (node,), taker)

    def lose_worker(self, worker: Worker) -> None:
        self._departures.pop(worker, None)
        self._ask_others(worker)

    def _ask_others(self, taker: Worker) -> None:
        """Instead of a worker that is gone, or leaves itself."""
        for worker, departure in self._departures.items():
            nodes = [node for node, asked in departure.waits_for.items() if asked is taker]
            for node in nodes:
                del departure.waits_for[node]
            self._hand_over(worker, nodes, taker)

    def _look(self, worker: Worker) -> None:
        """Have others take whatever only leaving workers hold; O(all tasks)."""
        self._departures[worker].looks -= 1
        nodes = (node for session in self._graph.sessions.values() for node in session.nodes())
        self._hand_over(worker, (node for node in nodes if node.state == states.FINISHED), None)

    def _hand_over(self, worker: Worker, nodes: Iterable[Node], but: Worker | None) -> None:
        """Have others take what of these objects is needed and would go with `worker`."""
        takers = [w for w in self._workers.values() if not (w.leaving or w.attaching or w.disk_full or w is but)]
        takers = [w for w in takers if not w.over_budget] or takers
        if not takers:
            return
        waits_for = self._departures[worker].waits_for
        given: list[list[ObjectAt]] = [[] for _ in takers]
        least = [(0, place) for place in range(len(takers))]  # heap of the bytes that each is given
        for node in nodes:
            if node not in waits_for and _goes_with(node, worker):
                given_bytes, place = least[0]
                heapreplace(least, (given_bytes + node.size_bytes + 1, place))
                waits_for[node] = takers[place]
                given[place].append(object_at(node, [worker.id]))
        for taker, objects in zip(takers, given, strict=True):
            for start in range(0, len(objects), _OBJECTS_A_MESSAGE):
                some = objects[start : start + _OBJECTS_A_MESSAGE]
                self._outbox.send(taker.link, TakeObjects([worker.address], some))

    def run(self) -> None:
        """Let go whoever has nothing any more that is needed. Once a turn."""
        for worker, departure in self._departures.items():
            waits_for = departure.waits_for
            while waits_for and not _goes_with(node := next(iter(waits_for)), worker):
                del waits_for[node]
            if departure.may_go or waits_for or worker.loads:
                continue
            if departure.looks:
                self._look(worker)
            if not waits_for:
                departure.may_go = True
                self._outbox.send(worker.link, StopWorker())


def _goes_with(node: Node, worker: Worker) -> bool:
    """Whether an object that is needed is lost when this worker has left, and all others that leave."""
    if node.state != states.FINISHED or not (node.n_pending or node.flags & WANTED):
        return False
    holders = node.holders()
    return worker in holders and all(holder.leaving for holder in holders)
