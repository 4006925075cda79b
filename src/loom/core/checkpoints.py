"""What the answers of those who write checkpoints mean: a result is told when it is saved, and fails if it cannot be.

Looking for checkpoints and loading them are tasks like others (`tasktypes.saving`), of which the server knows nothing.
"""

from __future__ import annotations

from loom.core import states
from loom.core.cluster import Worker
from loom.core.columns import ids_column
from loom.core.events import TaskFailed
from loom.core.graph import Graph
from loom.core.node import INLINED, WANTED, WRITING, Node
from loom.core.session import Failure
from loom.facts import ObjectsSaved, TasksFailed


class Checkpoints:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._failed: dict[Node, Failure] = {}  # in this turn; their dependents are still to fail

    def written(self, node: Node, worker: Worker, error: str) -> None:
        """`worker` has saved the object, or could not: then the task has failed after all."""
        node.flags &= ~WRITING
        if error:
            self._fail(node, Failure(node.users_number, worker.name, error))
        else:
            if self._graph.journal is not None:
                self._graph.journal.append(ObjectsSaved(ids_column([node.id])))
            if node.flags & (WANTED | INLINED) == WANTED:
                node.session.results_to_tell.append((node, None))
        self._graph.let_go(node)

    def _fail(self, node: Node, failure: Failure) -> None:
        """Fail a finished task."""
        graph = self._graph
        for holder in node.holders():
            graph.to_drop.append((holder, node.id))
        node.worker = node.replicas = None
        node.move(states.FAILED)
        graph.n_finished -= 1
        node.session.failures[node.number] = failure
        if node.flags & WANTED:
            graph.tell_failure(node, failure)
        if graph.facts is not None:
            graph.facts.append(TaskFailed(node.session.id, node.number, failure.worker, failure.error))
        if graph.journal is not None:
            numbers = ids_column([node.number])
            graph.journal.append(TasksFailed(node.session.id, numbers, failure.task, failure.worker, failure.error))
        if node.n_pending:
            self._failed[node] = failure

    def fail_dependents(self) -> None:
        """Fail what is not finished of the tasks that depend on those that failed in this turn; O(all tasks), once."""
        failed, self._failed = self._failed, {}
        for session in {node.session: None for node in failed}:
            if session.id not in self._graph.sessions:  # it has ended in the same turn
                continue
            for consumer in session.nodes():
                if consumer.state > states.ASSIGNED:
                    continue
                source = next((source for source in consumer.inputs if source in failed), None)
                if source is not None:
                    if consumer.worker is not None:
                        self._graph.to_cancel.append((consumer.worker, consumer.id))
                    self._graph.fail(consumer, failed[source])
