"""What has changed in a turn, as messages to those whom it concerns."""

from __future__ import annotations

from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.columns import ids_column
from loom.core.graph import Graph
from loom.core.node import HAS_LENGTH, INLINED, REPEATS, WANTED, WRITING, Node
from loom.core.outbox import Outbox
from loom.core.session import Session
from loom.ids import NUMBER_BITS
from loom.limits import MAX_LOCATIONS, MIB
from loom.messages import (
    RESULT,
    Acked,
    CancelTasks,
    DropObjects,
    FailedResult,
    ObjectAt,
    PeerAddress,
    ReadyResult,
    RecallTasks,
    ResultsFailed,
    ResultsReady,
    RunTask,
    RunTasks,
    TaskKind,
    WriteCheckpoint,
)

_RESULTS_A_MESSAGE: Final = 4096
_MESSAGE_BYTES: Final = 16 * MIB  # of what varies in one message; a frame takes four times that
_OBJECTS_A_MESSAGE: Final = 16_384  # besides a task's own inputs: some MiB at most
_FAILURE_CHARS: Final = 64  # what the failure of a result takes besides its texts
_ID_BYTES: Final = 9  # of an id as it travels


def tell_changes(graph: Graph, workers: dict[int, Worker], outbox: Outbox) -> None:
    """Cancel, recall, drop and save, then acknowledge the commands that led to it. Before any new assignment."""
    for pairs, message in (
        (graph.to_cancel, CancelTasks),
        (graph.to_recall, RecallTasks),
        (graph.to_drop, DropObjects),
    ):
        if not pairs:
            continue
        by_worker: dict[Worker, list[int]] = {}
        for worker, task in pairs:
            by_worker.setdefault(worker, []).append(task)
        pairs.clear()
        for worker, ids in by_worker.items():
            if worker.id in workers:
                outbox.send(worker.link, message(ids_column(ids)))
    for worker, task, path in graph.to_write:
        if worker.id in workers:
            outbox.send(worker.link, WriteCheckpoint(task, path))
    graph.to_write.clear()
    for session in graph.sessions.values():
        if session.unacked and session.link is not None:
            session.unacked = False
            outbox.send(session.link, Acked(session.applied_seq))


def assign_tasks(worker: Worker, nodes: list[Node], outbox: Outbox) -> None:
    """Assign `nodes` to `worker`, in messages that fit a frame however large the configurations are."""
    worker.n_given += len(nodes)
    start = 0
    size_bytes = 0
    for position, node in enumerate(nodes):
        size_bytes += node.config_size() + _ID_BYTES * len(node.inputs)
        if size_bytes > _MESSAGE_BYTES and position > start:
            _send_tasks(worker, nodes[start:position], outbox)
            start = position
            size_bytes = node.config_size()
    _send_tasks(worker, nodes[start:] if start else nodes, outbox)


def _send_tasks(worker: Worker, nodes: list[Node], outbox: Outbox) -> None:
    """Assign `nodes` to `worker`, with all it has not been told yet."""
    kinds: list[TaskKind] = []
    peers: list[PeerAddress] = []
    missing: dict[int, ObjectAt] = {}
    tasks = []
    for node in nodes:
        kind = node.kind
        if kind.number not in worker.kinds_told:
            worker.kinds_told.add(kind.number)
            kinds.append(TaskKind(kind.number, kind.symbol, kind.label, kind.request))
        base = node.session.id << NUMBER_BITS
        inputs = node.inputs
        for source in inputs:
            if source.worker is worker or source.state != states.FINISHED:
                continue  # held, or being made there
            if source.replicas and worker in source.replicas:
                continue
            holders = source.holders()[:MAX_LOCATIONS]
            missing[base | source.number] = object_at(source, [holder.id for holder in holders])
            _introduce(holders, worker.peers_told, peers)
        ids = node.input_ids() if node.flags & REPEATS else [base | source.number for source in inputs]
        flags = RESULT if node.flags & WANTED else 0
        number = base | node.number
        limit_ms = node.rules().time_limit_ms if kind.time_limit_ms else 0
        tasks.append(RunTask(number, node.attempt, kind.number, flags, limit_ms, node.n_pending, node.config(), ids))
    objects = list(missing.values())
    while len(objects) > _OBJECTS_A_MESSAGE:  # an object takes more than an input; they may come before their tasks
        outbox.send(worker.link, RunTasks([], peers, objects[-_OBJECTS_A_MESSAGE:], []))
        del objects[-_OBJECTS_A_MESSAGE:]
        peers = []
    outbox.send(worker.link, RunTasks(kinds, peers, objects, tasks))


def object_at(node: Node, workers: list[int]) -> ObjectAt:
    """Of a finished task."""
    length = node.session.lengths[node.number] if node.flags & HAS_LENGTH else 0
    return ObjectAt(node.id, node.attempt, node.size_bytes, length, workers)


def tell_client(session: Session, outbox: Outbox) -> bool:
    """Tell a session's client which results are finished and which have failed, if it can be told now.

    True where there is more to tell at once, in another turn.
    """
    link = session.link
    if link is None or session.full:
        return False
    if session.failures_to_tell:
        _tell_failures(session, link, outbox)
    if session.results_to_tell:
        news, session.results_to_tell = session.results_to_tell, []
        for start in range(0, len(news), _RESULTS_A_MESSAGE):
            _tell_results(session, link, news[start : start + _RESULTS_A_MESSAGE], outbox)
    return bool(session.failures_to_tell)


def _tell_results(session: Session, link: int, news: list[tuple[Node, bytes | None]], outbox: Outbox) -> None:
    results = []
    peers: list[PeerAddress] = []
    for node, packed in news:
        worker = node.worker
        if node.state != states.FINISHED or node.flags & (WANTED | WRITING) != WANTED or worker is None:
            continue
        if packed is not None:
            if len(packed) > session.credit_bytes:
                packed = None
            else:
                session.credit_bytes -= len(packed)
                node.flags |= INLINED
        if packed is None and worker.id not in session.peers_told:
            _introduce([worker], session.peers_told, peers)
        results.append(ReadyResult(node.number, node.size_bytes, worker.id, packed))
    if results:
        outbox.send(link, ResultsReady(results, peers))


def _tell_failures(session: Session, link: int, outbox: Outbox) -> None:
    """As many as fit a message: dependents repeat the text of what they depend on, so that all can take GiB."""
    told: dict[int, FailedResult] = {}
    size_chars = n_seen = 0
    for failed in session.failures_to_tell:
        if size_chars > _MESSAGE_BYTES // 4:  # a character takes up to four bytes
            break
        n_seen += 1
        if failed.number not in told and _is_wanted(session, failed.number):
            told[failed.number] = failed
            size_chars += len(failed.error) + len(failed.worker) + _FAILURE_CHARS
    del session.failures_to_tell[:n_seen]
    if told:
        outbox.send(link, ResultsFailed(list(told.values())))


def _is_wanted(session: Session, number: int) -> bool:
    node = session.find(number)
    return node is not None and bool(node.flags & WANTED)


def _introduce(holders: list[Worker], told: set[int], peers: list[PeerAddress]) -> None:
    for holder in holders:
        if holder.id not in told:
            told.add(holder.id)
            peers.append(holder.address)
