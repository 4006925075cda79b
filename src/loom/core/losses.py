"""What is lost with a worker or a replica, and what has to be made again because of it."""

from __future__ import annotations

from loom.core import states
from loom.core.cluster import Worker
from loom.core.crashes import Blame
from loom.core.graph import Graph
from loom.core.node import INLINED, RECALLED, WANTED, WRITING, Node


class Losses:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def lose_worker(self, worker: Worker, blame: Blame | None) -> tuple[int, int]:
        """Take back all that was assigned to a lost worker and recompute what only it held; O(all tasks).

        `blame` is told of what was assigned there, where it was not meant to go. Returns how many tasks and objects.
        """
        n_tasks = 0
        lost: dict[Node, list[Node]] = {}
        for session in self._graph.sessions.values():
            for node in session.nodes():
                if node.replicas and worker in node.replicas:
                    node.replicas = [r for r in node.replicas if r is not worker] or None
                if node.worker is not worker:
                    continue
                if node.state == states.ASSIGNED:
                    if blame is not None:
                        blame.add(node)
                    self._graph.give_back(node)
                    n_tasks += 1
                elif node.state == states.FINISHED:
                    if node.replicas:
                        self._move_to_replica(node)
                    else:
                        self._graph.object_gone(node)
                        lost[node] = []
        worker.ahead.clear()
        if lost:
            self._recompute(lost)
        return n_tasks, sum(node.state in states.UNFINISHED for node in lost)

    def lose_replica(self, node: Node, worker: Worker) -> None:
        """`worker` does not hold the object of a finished task (any more); O(all tasks) when nobody else does."""
        if node.replicas and worker in node.replicas:
            node.replicas = [r for r in node.replicas if r is not worker] or None
        elif node.worker is worker:
            if node.replicas:
                self._move_to_replica(node)
            else:
                self._graph.object_gone(node)
                self._recompute({node: []})

    def lose_objects(self, nodes: list[Node]) -> None:
        """These finished tasks' objects are to be made again, wherever they are held; O(all tasks), once."""
        lost: dict[Node, list[Node]] = {}
        for node in nodes:
            for holder in node.holders():
                self._graph.to_drop.append((holder, node.id))
            self._graph.object_gone(node)
            lost[node] = []
        if lost:
            self._recompute(lost)

    def _move_to_replica(self, node: Node) -> None:
        """The first holder is no more; another one takes its place."""
        assert node.replicas is not None
        node.worker, *others = node.replicas
        node.replicas = others or None
        if node.flags & WRITING:
            self._graph.save(node, node.worker)

    def _recompute(self, lost: dict[Node, list[Node]]) -> None:
        for session in self._graph.sessions.values():
            for node in session.nodes():
                if node.state > states.ASSIGNED:
                    continue
                for source in node.inputs:
                    if source in lost:
                        lost[source].append(node)
                        self._unmeet(node)
        for node, consumers in lost.items():
            if consumers:
                node.consumers = consumers
        for node in lost:
            if node.n_pending or node.flags & (WANTED | INLINED) == WANTED:
                self._graph.need(node)
            else:  # it may have been kept for its checkpoint only
                self._graph.let_go(node)

    def _unmeet(self, node: Node) -> None:
        node.n_unmet += 1
        if node.state == states.READY:
            node.move(states.WAITING)
        elif node.state == states.ASSIGNED and not node.flags & RECALLED:
            assert node.worker is not None
            node.flags |= RECALLED
            self._graph.to_recall.append((node.worker, node.id))
