"""The graph of a server that starts again, from what its journal says.

Objects of finished tasks are taken to be at a `ghost`, a worker that is none, until workers come back and say what they
hold (`attaching`). All else follows from what tasks are, which of them are over, and which results are wanted: what
nobody needs any more is let go by the graph itself.
"""

from __future__ import annotations

from loom.core import states
from loom.core.cluster import Worker
from loom.core.columns import column
from loom.core.graph import Graph, KindOf
from loom.core.kinds import Kind
from loom.core.node import (
    CANCELLED,
    COPIED,
    CUT,
    DYNAMIC,
    EXPANDED,
    HAS_LENGTH,
    REPEATS,
    WANTED,
    WRITING,
    Chunk,
    MadeChunk,
    Node,
)
from loom.core.past import PastSession
from loom.core.session import Failure, Session
from loom.facts import PlanAdded, TaskBecame, TasksMade
from loom.messages import RESULT, RegisterWorker

_MISSING = "what it takes is missing in the server's journal"


def ghost() -> Worker:
    return Worker(0, -1, RegisterWorker("nobody yet", 1, [], "", 0, "", [], 0, (0, 0, 0)), 0.0)


def restore_session(graph: Graph, past: PastSession, kind_of: KindOf, incarnation: int, holder: Worker) -> Session:
    """The session with all its tasks; it has no client yet. ProtocolError where a chunk is no plan."""
    session = Session(past.id, past.token, 0, None, incarnation)
    session.name, session.who = past.name, past.who
    session.applied_seq = past.seq
    session.next_number = past.next_number
    session.starts = [*past.starts, (incarnation, past.next_number)]
    session.plan_open = past.plan_open
    session.plan_first = past.plan_first
    graph.sessions[session.id] = session
    _Restoring(graph, session, past, kind_of, holder).run()
    session.names = {name: number for name, number in past.names.items() if session.find(number) is not None}
    session.named = {number: name for name, number in session.names.items()}
    return session


class _Restoring:
    def __init__(self, graph: Graph, session: Session, past: PastSession, kind_of: KindOf, holder: Worker) -> None:
        self._graph = graph
        self._session = session
        self._past = past
        self._kind_of = kind_of
        self._holder = holder
        self._unborn: dict[int, int] = {}  # consumers that are still to come
        self._made: set[Node] = set()  # by the server: these stay as they are

    def run(self) -> None:
        past, session, graph = self._past, self._session, self._graph
        for plan in past.plans:
            self._add_plan(plan)
        for made in past.made:
            self._add_made(made)
        for became in past.became.values():
            self._change(became)
        nodes = list(session.nodes())
        nodes.sort(key=lambda node: node.number)
        session.unborn = {number: count for number, count in self._unborn.items() if count > 0}
        missing = [node for node in nodes if not self._connect(node)]
        for node in nodes:
            self._set_state(node)
        for node in nodes:
            self._count(node)
        for node in nodes:
            if node.state != states.FORGOTTEN:
                graph.let_go(node)
        for node in missing:
            if node.state == states.WAITING:
                graph.fail(node, Failure(node.users_number, "", _MISSING))
            elif node.state != states.FORGOTTEN:
                self._cut(node)
        left = list(session.nodes())
        left.sort(key=lambda node: node.number)
        for node in left:
            self._await(node)
        for node in left:
            self._settle(node)

    # -- What there is ------------------------------------------------------------------------------------------------

    def _add_plan(self, fact: PlanAdded) -> None:
        plan, session = fact.chunk, self._session
        chunk = Chunk(plan, fact.stands_for)
        session.chunks[chunk.first] = chunk
        session.enter_chunk(chunk)
        symbols, labels = column(plan.symbol_of, "H"), column(plan.label_of, "H")
        requests = column(plan.request_of, "H")
        is_open = self._past.plan_open and fact.stands_for is None and plan.plan_first == self._past.plan_first
        consumers = column(plan.consumers, "I")
        for row in range(len(chunk)):
            rules = chunk.rules(row)
            symbol, label, request = plan.symbols[symbols[row]], plan.labels[labels[row]], plan.requests[requests[row]]
            kind = self._kind_of(symbol, label, request, rules.time_limit_ms)
            node = self._add(chunk.first + row, chunk, kind, bool(plan.flags[row] & RESULT))
            if rules.priority:
                session.has_priorities = True
            if kind.is_dynamic:
                session.has_dynamic = True
                node.flags |= DYNAMIC
            elif session.has_dynamic:
                sources = (session.find(number) for number in chunk.input_numbers(row))
                if any(source is not None and source.flags & DYNAMIC for source in sources):
                    node.flags |= COPIED
            if is_open:
                self._unborn[node.number] = self._unborn.get(node.number, 0) + consumers[row]
                for number in set(chunk.input_numbers(row)):
                    if number >= plan.plan_first:
                        self._unborn[number] -= 1

    def _add_made(self, fact: TasksMade) -> None:
        inputs = column(fact.inputs, "Q").tolist()
        own: list[list[int]] = []
        start = 0
        for end in column(fact.input_ends, "I"):
            own.append(inputs[start:end])
            start = end
        configs = fact.configs if len(fact.configs) == len(own) else fact.configs * len(own)
        chunk = MadeChunk(fact.first, fact.level, configs, own, fact.stands_for, fact.rules)
        self._session.enter_chunk(chunk)
        kind = self._kind_of(fact.symbol, fact.label, fact.request, fact.time_limit_ms)
        for row in range(len(own)):
            self._made.add(self._add(fact.first + row, chunk, kind, False))

    def _add(self, number: int, chunk: Chunk | MadeChunk, kind: Kind, is_result: bool) -> Node:
        past = self._past
        node = Node(self._session, number, chunk, kind, (), 0)
        node.flags = past.flags.get(number, 0)
        if node.flags & (DYNAMIC | COPIED):  # what was dynamic may be gone, and what it became is still there
            self._session.has_dynamic = True
        if is_result and number not in past.released:
            node.flags |= CANCELLED if number in past.cancelled else WANTED
        self._session.put(node)
        return node

    def _change(self, fact: TaskBecame) -> None:
        node = self._session.find(fact.number)
        if node is None:
            return
        old = node.chunk
        inputs = column(fact.inputs, "Q").tolist()
        rules, checkpoint = node.rules(), node.checkpoint()
        made = MadeChunk(node.number, node.level(), [fact.config], [inputs], old.stands_for, rules, checkpoint)
        self._session.leave_chunk(node)
        self._session.enter_chunk(made)
        node.chunk = made
        node.kind = self._kind_of(fact.symbol, fact.label, fact.request, fact.time_limit_ms)

    # -- What follows from it -----------------------------------------------------------------------------------------

    def _connect(self, node: Node) -> bool:
        """Find the inputs; False where not all of them are there. It may be that nobody needs the task, either."""
        numbers = node.input_numbers()
        unique = list(dict.fromkeys(numbers))
        found = [self._session.find(number) for number in unique]
        node.inputs = tuple([source for source in found if source is not None])
        if len(unique) < len(numbers):
            node.flags |= REPEATS
        return len(node.inputs) == len(unique)

    def _set_state(self, node: Node) -> None:
        past, number = self._past, node.number
        if number in past.failures:
            node.state = states.FAILED
            self._session.failures[number] = past.failures[number]
        elif number in past.finished:
            node.state = states.FINISHED
            node.attempt, node.size_bytes = past.finished[number]
            node.worker = self._holder
            self._graph.n_finished += 1
            if number in past.lengths:
                node.flags |= HAS_LENGTH
                self._session.lengths[number] = past.lengths[number]
            if node.checkpoint() and number not in past.saved:
                node.flags |= WRITING

    def _count(self, node: Node) -> None:
        """As if every task were needed; `let_go` takes back what is not."""
        unborn = max(0, self._unborn.get(node.number, 0)) if self._unborn else 0
        node.n_pending += unborn
        node.n_children += unborn + (1 if node.flags & CANCELLED else 0)
        pending = 1 if node.state == states.WAITING else 0
        for source in node.inputs:
            source.n_children += 1
            source.n_pending += pending

    def _cut(self, node: Node) -> None:
        """It can never be run again, and needs nothing any more; an array of parts cannot do without them."""
        if node.state == states.FINISHED and node.flags & EXPANDED:
            node.flags &= ~WRITING
            node.worker = None
            node.move(states.FAILED)
            self._graph.n_finished -= 1
            self._session.failures[node.number] = Failure(node.users_number, "", _MISSING)
        node.flags = node.flags & ~REPEATS | CUT
        inputs, node.inputs = node.inputs, ()
        for source in inputs:
            source.n_children -= 1
            self._graph.let_go(source)

    def _await(self, node: Node) -> None:
        if node.state != states.WAITING:
            return
        for source in node.inputs:
            if source.state == states.WAITING:
                node.n_unmet += 1
                if source.consumers is None:
                    source.consumers = [node]
                else:
                    source.consumers.append(node)

    def _settle(self, node: Node) -> None:
        """The first state of what is still to be done."""
        if node.state != states.WAITING:
            return
        for source in node.inputs:
            if source.state == states.FAILED:
                self._graph.fail(node, self._session.failures[source.number])
                return
        is_dynamic = bool(node.flags & (DYNAMIC | COPIED)) and not node.flags & EXPANDED
        if is_dynamic or (node not in self._made and any(source.flags & EXPANDED for source in node.inputs)):
            self._graph.to_expand[node] = None
        if not node.n_unmet:
            self._graph.make_ready(node)
