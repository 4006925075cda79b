"""Who is told to write traces, and what the server itself has to write down.

There is one trace at a time; it belongs to the session that asked for it last, and ends with it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from loom.core.cluster import Worker
from loom.core.columns import ids_column
from loom.core.events import Facts, PlanGrew, ServerEffect, StartTrace, WorkerJoined, WorkerLeft
from loom.core.graph import Graph
from loom.core.node import Node
from loom.core.outbox import Outbox
from loom.core.session import Session
from loom.errors import ProtocolError
from loom.limits import MAX_CHUNK_TASKS, MAX_PATH_BYTES
from loom.messages import PlanChunk, WriteTrace


class Tracing:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._session: Session | None = None  # whose trace it is
        self._path = b""
        self._moved = False

    def start(self, session: Session, path: bytes, workers: Iterable[Worker], outbox: Outbox) -> None:
        if not path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH_BYTES:
            raise ProtocolError(f"a trace cannot go to {path!r:.100}")
        workers = list(workers)
        self._session = session
        self._set(path, workers, outbox)
        self._graph.facts = [_joined(worker) for worker in workers]
        for traced in self._graph.sessions.values():
            self._graph.facts += plan_of(traced.id, sorted(traced.nodes(), key=lambda node: node.number))

    def _set(self, path: bytes, workers: Iterable[Worker], outbox: Outbox) -> None:
        self._path = path
        self._moved = True
        for worker in workers:
            outbox.send(worker.link, WriteTrace(path))

    def on_session_end(self, session: Session, workers: Iterable[Worker], outbox: Outbox) -> None:
        if session is self._session:
            self._session = None
            self._graph.facts = None
            self._set(b"", workers, outbox)

    def on_worker(self, worker: Worker, outbox: Outbox) -> None:
        if self._graph.facts is not None:
            outbox.send(worker.link, WriteTrace(self._path))
            self._graph.facts.append(_joined(worker))

    def on_worker_lost(self, worker: Worker) -> None:
        if self._graph.facts is not None:
            self._graph.facts.append(WorkerLeft(worker.id))

    def take(self) -> list[ServerEffect]:
        """What the shell has to do for the trace, before it sends anything."""
        effects: list[ServerEffect] = []
        if self._moved:
            self._moved = False
            effects.append(StartTrace(self._path))
        if self._graph.facts:
            effects.append(Facts(self._graph.facts))
            self._graph.facts = []
        return effects


def _joined(worker: Worker) -> WorkerJoined:
    return WorkerJoined(worker.id, worker.name, worker.cpus, list(worker.extras.items()))


def plan_of(session: int, tasks: Iterable[Node]) -> Iterator[PlanGrew]:
    """Tasks in the order of their numbers, in stretches without a gap."""
    nodes: list[Node] = []
    for node in tasks:
        if nodes and (node.number != nodes[-1].number + 1 or len(nodes) == MAX_CHUNK_TASKS):
            yield PlanGrew(session, _chunk_of(nodes))
            nodes = []
        nodes.append(node)
    if nodes:
        yield PlanGrew(session, _chunk_of(nodes))


def _chunk_of(nodes: list[Node]) -> PlanChunk:
    """Tasks with consecutive numbers, without what only running them needs."""
    kinds = list(dict.fromkeys(node.kind for node in nodes))
    places = {kind: place for place, kind in enumerate(kinds)}
    kind_of = array("H", [places[node.kind] for node in nodes]).tobytes()
    inputs: list[int] = []
    ends = array("I")
    for node in nodes:
        inputs += node.input_numbers()
        ends.append(len(inputs))
    first = nodes[0].number
    return PlanChunk(
        first,
        first,
        [kind.symbol for kind in kinds],
        [kind.label for kind in kinds],
        [],
        [],
        kind_of,
        kind_of,
        b"",
        b"",
        b"",
        b"",
        b"",
        ends.tobytes(),
        ids_column(inputs),
        b"",
        b"",
        b"",
        [],
        False,
    )
