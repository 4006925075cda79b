"""What workers say, applied to the graph.

A worker answers each assignment once: finished, failed, redirected or given back. An answer that is not about the
present attempt crossed a cancellation on its way and is void: the worker drops what a cancelled task has left.
"""

from __future__ import annotations

from typing import Final

from loom.core import states
from loom.core.attaching import Attaching
from loom.core.checkpoints import Checkpoints
from loom.core.cluster import Worker
from loom.core.columns import column, ids_column
from loom.core.graph import Graph, finished_fact
from loom.core.kinds import Kind, Kinds
from loom.core.leaving import Leaving
from loom.core.losses import Losses
from loom.core.node import CUT, RECALLED, WRITING, Chunk, Node
from loom.core.plan_checks import check_shape
from loom.core.relays import Relays
from loom.core.schedule import Scheduler
from loom.core.session import Failure
from loom.errors import ProtocolError
from loom.ids import SERVER_MADE, number_of, session_of
from loom.limits import INLINE_RESULT_BYTES, MAX_DURATION_US, MAX_ERROR_CHARS
from loom.messages import (
    SAME,
    CheckpointWritten,
    FinishedTask,
    Message,
    NotTaken,
    ObjectsHeld,
    PlanChunk,
    RelayPiece,
    RelayWanted,
    TaskRedirected,
    TasksFailed,
    TasksFinished,
    TasksGivenBack,
    WorkerCondition,
    WorkerInventory,
    WorkerLeaves,
)
from loom.resources import Request

_PATIENCE_ATTEMPTS: Final = 16  # that come back for it, until inputs that cannot be brought to a task are made again


class Reports:
    def __init__(
        self,
        graph: Graph,
        losses: Losses,
        scheduler: Scheduler,
        kinds: Kinds,
        relays: Relays,
        leaving: Leaving,
        attaching: Attaching,
    ) -> None:
        self._graph = graph
        self._losses = losses
        self._checkpoints = Checkpoints(graph)
        self._scheduler = scheduler
        self._kinds = kinds
        self._relays = relays
        self._leaving = leaving
        self._attaching = attaching
        self._alias = kinds.find(SAME, "", Request())  # what a redirected task becomes

    def end_turn(self) -> None:
        """After the last message of a turn."""
        self._checkpoints.fail_dependents()

    def on_message(self, worker: Worker, message: Message, now: float) -> None:
        match message:
            case TasksFinished():
                self._on_tasks_finished(worker, message.tasks)
            case TasksFailed():
                for failed in message.tasks:
                    node = self._running(worker, failed.task, failed.attempt)
                    if node is not None:
                        error = failed.error[:MAX_ERROR_CHARS]
                        self._graph.fail_or_retry(node, Failure(node.users_number, worker.name, error))
            case TaskRedirected():
                self._on_task_redirected(worker, message)
            case ObjectsHeld():
                for object_id in column(message.objects, "Q"):
                    self._on_object_held(worker, object_id)
            case TasksGivenBack():
                self._on_tasks_given_back(worker, message, now)
            case RelayWanted():
                for object_id in column(message.objects, "Q"):
                    self._relays.ask(worker, self._find(object_id), object_id)
            case NotTaken():
                for object_id in column(message.objects, "Q"):
                    node = self._find(object_id)
                    if node is not None:
                        self._leaving.not_taken(worker, node)
            case WorkerCondition():
                self._scheduler.set_condition(worker, message.over_budget, message.disk_full)
            case WorkerLeaves():
                self._leaving.begin(worker)
            case WorkerInventory():
                self._attaching.on_inventory(worker, message)
            case CheckpointWritten():
                self._on_checkpoint_written(worker, message)
            case RelayPiece():
                if message.error:
                    self._on_object_missing(worker, message.object)
                if message.last or not message.error:
                    self._relays.on_piece(worker, message)
            case _:
                raise ProtocolError(f"a worker sent {type(message).__name__}")

    def _find(self, task: int) -> Node | None:
        session = self._graph.sessions.get(session_of(task))
        return session.find(number_of(task)) if session is not None else None

    def _running(self, worker: Worker, task: int, attempt: int) -> Node | None:
        """The task if this worker holds this attempt of it; a stale fact gives None."""
        node = self._find(task)
        if node is None or node.state != states.ASSIGNED or node.worker is not worker or node.attempt != attempt:
            return None
        return node

    def _on_tasks_finished(self, worker: Worker, tasks: list[FinishedTask]) -> None:
        finish = self._graph.finish
        measured: dict[Kind, None] = {}
        made: list[Node] | None = [] if worker.leaving else None
        accepted: list[FinishedTask] | None = [] if self._graph.journal is not None else None
        for done in tasks:
            node = self._running(worker, done.task, done.attempt)
            if node is None:
                continue
            if node.n_unmet and not node.flags & RECALLED:
                raise ProtocolError(f"task {done.task} finished before its inputs")
            if done.packed is not None and len(done.packed) > INLINE_RESULT_BYTES:
                raise ProtocolError(f"the result of task {done.task} came with {len(done.packed)} bytes")
            node.kind.durations.add(min(done.duration_us, MAX_DURATION_US))
            measured[node.kind] = None
            finish(node, done.size_bytes, done.length, done.packed)
            if made is not None:
                made.append(node)
            if accepted is not None:
                accepted.append(done)
        for kind in measured:
            kind.estimate()
        if made:
            self._leaving.finished(worker, made)
        if accepted and self._graph.journal is not None:
            self._graph.journal.append(finished_fact(accepted))

    def _on_task_redirected(self, worker: Worker, message: TaskRedirected) -> None:
        node = self._running(worker, message.task, message.attempt)
        if node is None:
            return
        try:
            check_shape(message.chunk)
            chunk = _renumber(message.chunk, node.session.take_numbers(len(message.chunk.flags)), node)
            self._graph.redirect(node, chunk, self._kinds.find, self._alias)
        except ProtocolError as error:  # the plan comes from the task: it fails, and not its worker
            failure = Failure(node.users_number, worker.name, f"The task returned a plan that is invalid: {error}")
            self._graph.fail(node, failure)

    def _on_object_held(self, worker: Worker, object_id: int) -> None:
        if session_of(object_id) not in self._graph.sessions:
            return
        node = self._find(object_id)
        if node is not None and node.state == states.FINISHED:
            if node.worker is worker:
                return
            if node.replicas is None:
                node.replicas = [worker]
            elif worker not in node.replicas:
                node.replicas.append(worker)
        elif node is None or node.state != states.ASSIGNED or node.worker is not worker:
            self._graph.to_drop.append((worker, object_id))
        # else the worker makes the object itself now, and knows that this copy is void

    def _on_object_missing(self, worker: Worker, object_id: int) -> None:
        node = self._find(object_id)
        if node is not None and node.state == states.FINISHED and worker in node.holders():
            self._losses.lose_replica(node, worker)

    def _on_checkpoint_written(self, worker: Worker, message: CheckpointWritten) -> None:
        node = self._find(message.object)
        if node is not None and node.flags & WRITING and worker is node.worker:
            self._checkpoints.written(node, worker, message.error[:MAX_ERROR_CHARS])

    def _on_tasks_given_back(self, worker: Worker, message: TasksGivenBack, now: float) -> None:
        tasks, attempts = column(message.tasks, "Q"), column(message.attempts, "Q")
        if len(tasks) != len(attempts):
            raise ProtocolError("columns of TasksGivenBack differ in length")
        given = 0
        for task, attempt in zip(tasks, attempts, strict=True):
            node = self._running(worker, task, attempt)
            if node is None:
                continue
            given += 1
            asked = message.answer or worker.leaving or node.flags & RECALLED
            self._graph.give_back(node)
            if not asked:
                self._doubt(worker, node)
        if message.answer:
            self._scheduler.answered(worker, given, now)

    def _doubt(self, worker: Worker, node: Node) -> None:
        """An input could not be brought to the worker. That may pass; if not, it is made again in the end."""
        doubts = node.session.doubts
        doubts[node.number] = doubts.get(node.number, 0) + 1
        if doubts[node.number] == _PATIENCE_ATTEMPTS:
            del doubts[node.number]
            self._losses.lose_objects(
                [
                    s
                    for s in node.inputs
                    if s.state == states.FINISHED and worker not in s.holders() and not s.flags & CUT
                ]
            )


def _renumber(plan: PlanChunk, base: int, node: Node) -> PlanChunk:
    """A redirection's plan with numbers of this session; its low inputs are positions among `node`'s inputs."""
    if plan.first != SERVER_MADE:
        raise ProtocolError("a redirection's plan is numbered wrongly")
    own = node.input_numbers()
    chunk = Chunk(plan, node.number)
    inputs = chunk.inputs.tolist()
    start = 0
    for row, end in enumerate(chunk.input_ends):
        if max(inputs[start:end], default=0) >= SERVER_MADE + row:
            raise ProtocolError("a redirection's plan is not in topological order")
        start = end
    numbers = []
    for number in inputs:
        if number >= SERVER_MADE:
            numbers.append(number - SERVER_MADE + base)
        elif number < len(own):
            numbers.append(own[number])
        else:
            raise ProtocolError(f"a redirection refers to input {number} of a task with {len(own)}")
    return PlanChunk(
        base,
        base,
        plan.symbols,
        plan.labels,
        plan.requests,
        plan.rules,
        plan.symbol_of,
        plan.label_of,
        plan.request_of,
        plan.rules_of,
        bytes(len(plan.flags)),
        plan.levels,
        plan.consumers,
        plan.input_ends,
        ids_column(numbers),
        plan.config_ends,
        plan.configs,
        plan.checkpoint_rows,
        plan.checkpoint_paths,
        False,
    )
