"""What the answers of those who write checkpoints mean: a result is told when it is saved, and fails if it cannot be.

Looking for checkpoints and loading them are tasks like others (`tasktypes.saving`), of which the server knows nothing.
"""

from __future__ import annotations

from loom.core import states
from loom.core.cluster import Worker
from loom.core.events import TaskFailed
from loom.core.graph import Graph
from loom.core.node import INLINED, WANTED, WRITING, Node
from loom.core.session import Failure


class Checkpoints:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def written(self, node: Node, worker: Worker, error: str) -> None:
        """`worker` has saved the object, or could not: then the task has failed after all."""
        node.flags &= ~WRITING
        if error:
            self._fail(node, Failure(node.users_number, worker.name, error))
        elif node.flags & (WANTED | INLINED) == WANTED:
            node.session.results_to_tell.append((node, None))
        self._graph.let_go(node)

    def _fail(self, node: Node, failure: Failure) -> None:
        """Fail a finished task, and what has not been finished of those that depend on it; O(all tasks)."""
        for holder in node.holders():
            self._graph.to_drop.append((holder, node.id))
        node.worker = node.replicas = None
        node.move(states.FAILED)
        self._graph.n_finished -= 1
        node.session.failures[node.number] = failure
        if node.flags & WANTED:
            self._graph.tell_failure(node, failure)
        if self._graph.facts is not None:
            self._graph.facts.append(TaskFailed(node.session.id, node.number, failure.worker, failure.error))
        for consumer in node.session.nodes():
            if consumer.state <= states.ASSIGNED and node in consumer.inputs:
                if consumer.worker is not None:
                    self._graph.to_cancel.append((consumer.worker, consumer.id))
                self._graph.fail(consumer, failure)
