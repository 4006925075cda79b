"""Workers that come back with what they have, and the time after a restart in which they do.

What a worker says is the truth about what it holds. Whether that is still what a task of ours made is told by the
attempt: an object of a finished task is good where it was made by the attempt that was accepted. Of an unfinished task
an object, or a run, is good where it was given out by this server, or by an earlier one for a task that was in the
journal: then it is the same task, of which the end had not been written. All else the worker drops.

Until all workers that there were are back, or some time is over, nothing is scheduled: what seems to be lost may be on
its way.
"""

from __future__ import annotations

from loom.core import states
from loom.core.cluster import Worker
from loom.core.columns import column, ids_column
from loom.core.graph import Graph, finished_fact
from loom.core.losses import Losses
from loom.core.node import ALIAS, COPIED, DYNAMIC, RECALLED, SUSPECT, WRITING, Node
from loom.core.outbox import Outbox
from loom.core.restore import ghost
from loom.errors import ProtocolError
from loom.facts import WorkerDetached
from loom.ids import incarnation_of, number_of, session_of
from loom.limits import MAX_INVENTORY
from loom.messages import CancelTasks, DropObjects, FinishedTask, WorkerInventory


class _Return:
    """A worker on its way back: the tasks it has and what it is to drop, until all is said."""

    def __init__(self) -> None:
        self.n_named = 0
        self.tasks: list[tuple[int, int]] = []
        self.refused: list[int] = []


class Attaching:
    """`expected`: those who were there before the server started again, by the numbers they had.

    They are waited for `reattach_s`.
    """

    def __init__(self, graph: Graph, losses: Losses, outbox: Outbox, incarnation: int, reattach_s: float) -> None:
        self._graph = graph
        self._losses = losses
        self._outbox = outbox
        self._incarnation = incarnation
        self._reattach_s = reattach_s
        self.ghost = ghost()
        self.expected: dict[int, str] = {}
        self.settling = False
        self.settle_at: float | None = None
        self._returns: dict[Worker, _Return] = {}

    def expect(self, workers: dict[int, str]) -> None:
        """The server has started again; these were there."""
        self.expected = dict(workers)
        self.settling = True

    def begin(self, worker: Worker) -> None:
        """A worker is there again and will say what it has."""
        worker.attaching = True
        worker.set_shut()
        self._returns[worker] = _Return()

    def lose_worker(self, worker: Worker) -> None:
        """One that had not said all yet may come back once more."""
        self._returns.pop(worker, None)

    def is_over(self, now: float) -> bool:
        """Whether all are back, or enough has been waited for those who are not."""
        if self.settle_at is None:
            self.settle_at = now + self._reattach_s
        return not self.expected or now >= self.settle_at

    def settle(self) -> int:
        """What nobody has brought is lost; returns how many objects of it somebody needs."""
        self.settling = False
        self.settle_at = None
        for before in list(self.expected):
            self._is_no_more(before)
        return self._losses.lose_worker(self.ghost, None)[1]

    def _is_no_more(self, worker: int) -> None:
        """It is back under another number, or given up."""
        del self.expected[worker]
        if self._graph.journal is not None:
            self._graph.journal.append(WorkerDetached(worker))

    # -- What it brings -----------------------------------------------------------------------------------------------

    def on_inventory(self, worker: Worker, message: WorkerInventory) -> None:
        back = self._returns.get(worker)
        if back is None:
            raise ProtocolError("a worker says unasked what it has")
        objects, attempts = column(message.objects, "Q"), column(message.object_attempts, "Q")
        sizes, lengths = column(message.sizes, "Q"), column(message.lengths, "Q")
        tasks, task_attempts = column(message.tasks, "Q"), column(message.task_attempts, "Q")
        if len({*map(len, (objects, attempts, sizes, lengths))}) > 1 or len(tasks) != len(task_attempts):
            raise ProtocolError("columns of an inventory differ in length")
        back.n_named += len(objects) + len(tasks)
        if back.n_named > MAX_INVENTORY:
            raise ProtocolError(f"an inventory names more than {MAX_INVENTORY} objects and tasks")
        adopted: list[FinishedTask] = []
        for object_id, attempt, size_bytes, length in zip(objects, attempts, sizes, lengths, strict=True):
            node = self._find(object_id)
            if node is not None and node.state == states.FINISHED and node.attempt == attempt:
                self._is_at(node, worker)
            elif node is not None and self._is_same(node, attempt) and not node.flags & (DYNAMIC | COPIED):
                adopted.append(FinishedTask(object_id, attempt, size_bytes, length, 0, None))
                self._finish(node, worker, adopted[-1])
            else:
                back.refused.append(object_id)
        if adopted and self._graph.journal is not None:
            self._graph.journal.append(finished_fact(adopted))
        back.tasks += zip(tasks, task_attempts, strict=True)
        if message.last:
            self._take_tasks(worker, back)

    def _find(self, task: int) -> Node | None:
        session = self._graph.sessions.get(session_of(task))
        return session.find(number_of(task)) if session is not None else None

    def _is_same(self, node: Node, attempt: int) -> bool:
        """Whether this attempt is one of the task as it is, which nobody else has."""
        if node.state not in (states.WAITING, states.READY) or node.is_held() or node.flags & SUSPECT:
            return False
        incarnation = incarnation_of(attempt)
        if incarnation >= self._incarnation:
            return node.attempt == attempt
        return node.session.known_since(node.number, incarnation) and not node.flags & (DYNAMIC | COPIED)

    def _is_at(self, node: Node, worker: Worker) -> None:
        """The object of a finished task is there."""
        if node.worker is self.ghost:
            node.worker = worker
            if node.flags & WRITING:
                self._graph.save(node, worker)
        elif node.replicas is None:
            if node.worker is not worker:
                node.replicas = [worker]
        elif worker not in node.holders():
            node.replicas.append(worker)

    def _finish(self, node: Node, worker: Worker, done: FinishedTask) -> None:
        """The worker made the object, and nobody knew; not all of its inputs need be there any more."""
        self._graph.assign(node, worker)
        node.attempt = done.attempt
        if node.n_unmet:
            node.flags |= RECALLED
        self._graph.finish(node, done.size_bytes, done.length, None)

    def _take_tasks(self, worker: Worker, back: _Return) -> None:
        refused = []
        for task, attempt in back.tasks:
            node = self._find(task)
            is_ours = node is not None and not node.flags & ALIAS and self._is_same(node, attempt)
            if node is not None and is_ours and _has_inputs(node, worker):
                self._graph.assign(node, worker)
                node.attempt = attempt
            else:
                refused.append(task)
        if refused:
            self._outbox.send(worker.link, CancelTasks(ids_column(refused)))
        if back.refused:
            self._outbox.send(worker.link, DropObjects(ids_column(back.refused)))
        del self._returns[worker]
        for before in [number for number, name in self.expected.items() if name == worker.name]:
            self._is_no_more(before)
        worker.attaching = False
        worker.set_shut()
        self._graph.touched[worker] = None


def _has_inputs(node: Node, worker: Worker) -> bool:
    """Whether all that a task takes is there, or is being made there."""
    for source in node.inputs:
        if source.state == states.FINISHED:
            if worker not in source.holders():
                return False
        elif source.state != states.ASSIGNED or source.worker is not worker:
            return False
    return True
