"""Dynamic slice and get: tasks that become several when it is known how many.

A dynamic task (`dslice`, `dget`) whose input is there gets one task a piece and becomes an array of them. Each direct
consumer gets one copy a piece (with several dynamic inputs one for each combination, the first input outermost) and
becomes an array of its copies. Who consumes such a consumer gets the copies in its place, in order. The arrays are
made only where a future or a redirection wants them; else they just hold their parts until all consumers have them. A
dynamic task with several inputs, because what it consumed was itself expanded, takes them one after the other.

Nothing is expanded before the whole plan is there: then all who consume it are known. A consumer in a later plan finds
what was expanded already, and takes the parts from there; out of the array, once that is finished.
"""

from __future__ import annotations

from array import array
from collections import deque
from itertools import accumulate, product
from typing import Final

from msgspec.msgpack import Encoder

from loom.core import states
from loom.core.columns import ids_column
from loom.core.graph import Graph
from loom.core.kinds import Kind, Kinds
from loom.core.node import ALIAS, COPIED, DYNAMIC, EXPANDED, GATHERED, REPEATS, MadeChunk, Node
from loom.core.session import Failure, Session
from loom.core.tracing import plan_of
from loom.errors import ProtocolError
from loom.facts import TasksMade
from loom.ids import NUMBER_BITS
from loom.limits import MAX_COPIES, MAX_INPUTS, MAX_MADE_TASKS
from loom.messages import ARRAY_MAKE, DSLICE, GET, SLICE, GetConfig, SliceConfig
from loom.resources import Request

_PIECES_A_CPU: Final = 4  # of a dslice: enough to even out tasks that differ, and the contract
_LIGHT: Final = Request()
_MANY: Final = 1 << 62  # combinations: no more is multiplied
_ALL_EARLIER: Final = 1 << NUMBER_BITS  # a plan number that every input is below

_encode: Final = Encoder().encode


class Expander:
    """Works off `graph.to_expand`."""

    def __init__(self, graph: Graph, kinds: Kinds) -> None:
        self._graph = graph
        self._kinds = kinds
        self._to_tell: deque[Node] = deque()  # expanded tasks whose consumers are to be looked at
        self._n_cpus = 0

    def run(self, n_cpus: int) -> None:
        """Expand what can be; `n_cpus` are the cores of the whole cluster."""
        graph = self._graph
        self._n_cpus = n_cpus
        later: dict[Node, None] = {}
        while graph.to_expand or self._to_tell:
            if self._to_tell:
                self._tell(self._to_tell.popleft())
                continue
            node = next(iter(graph.to_expand))
            del graph.to_expand[node]
            if node.session.id in graph.sessions and node.state in (states.WAITING, states.READY):
                self._try(node)
                if node.session.plan_open:
                    later[node] = None
        graph.to_expand = later

    def _tell(self, expanded: Node) -> None:
        """Have the consumers of a task that was just expanded take its parts."""
        consumers = _take_consumers(expanded)
        for consumer in consumers:
            if consumer.state <= states.ASSIGNED and expanded in consumer.inputs:
                self._try(consumer)
        # some are listed again: they took other parts meanwhile, and still wait for this one
        known: dict[Node, None] = dict.fromkeys(_take_consumers(expanded))
        known.update(dict.fromkeys(c for c in consumers if c.state <= states.ASSIGNED and expanded in c.inputs))
        expanded.consumers = list(known) or None

    def _try(self, node: Node) -> None:
        try:
            self._look(node)
        except ProtocolError as error:  # there are too many already
            self._fail(node, str(error))

    def _look(self, node: Node) -> None:
        """Do what can be done with a task that waits."""
        if node.flags & (ALIAS | EXPANDED):
            return
        self._splice(node)
        if node.session.plan_open or node.state != states.WAITING:
            return
        if node.flags & DYNAMIC:
            if not node.n_unmet:
                self._cut(node)
        elif node.flags & COPIED and all(s.flags & EXPANDED for s in node.inputs if s.flags & DYNAMIC):
            self._copy(node)

    def _splice(self, node: Node) -> None:
        """Put copies in the place of copied inputs; for a dynamic task, pieces in the place of dynamic ones too."""
        wanted = COPIED | DYNAMIC if node.flags & DYNAMIC else COPIED
        if not any(source.flags & EXPANDED and source.flags & wanted for source in node.inputs):
            return
        own = _positional(node)
        n_inputs = 0
        for source in own:
            n_inputs += len(source.input_numbers()) if source.flags & EXPANDED and source.flags & wanted else 1
            if n_inputs > MAX_INPUTS:
                self._fail(node, f"its inputs are copied, and it takes more than {MAX_INPUTS} of the copies")
                return
        over = [source for source in node.inputs if source.state not in states.UNFINISHED]
        self._check_room(node.session, sum(len(source.input_numbers()) for source in over if source.flags & EXPANDED))
        parts: dict[Node, list[Node]] = {}
        inputs: list[Node] = []
        for source in own:
            if not (source.flags & EXPANDED and source.flags & wanted):
                inputs.append(source)
                continue
            if source not in parts:
                parts[source] = self._parts(source)
            inputs += parts[source]
        self._graph.become(node, node.kind, node.config(), inputs)

    def _parts(self, source: Node) -> list[Node]:
        """The parts of an expanded task: themselves while it waits for them, else elements of the array."""
        parts = _positional(source)
        if source.state in states.UNFINISHED:
            return parts
        self._graph.mark(source, GATHERED)
        kind = self._kinds.find(GET, source.kind.label, _LIGHT)
        configs = [_encode(GetConfig(i)) for i in range(len(parts))]
        return self._make(source, kind, configs, [[source]] * len(parts))

    # -- Dynamic tasks ------------------------------------------------------------------------------------------------

    def _cut(self, node: Node) -> None:
        """Make the pieces of a dynamic task whose inputs are all there."""
        sources = _positional(node)
        if not sources:
            self._fail(node, f"{node.kind.symbol}: takes one input, not none")
            return
        lengths = [node.session.lengths.get(source.number, 0) for source in sources]
        if node.kind.symbol == DSLICE:
            symbol = SLICE
            total = sum(lengths)
            n_pieces = min(self._n_cpus * _PIECES_A_CPU, MAX_COPIES // 2)
            cuts = [_slices(length, n_pieces, total) for length in lengths]
            if not total:
                cuts[0] = [SliceConfig(0, 0)]
            counts = list(map(len, cuts))
            if sum(counts) > MAX_COPIES:
                self._fail(node, f"{node.kind.symbol}: its inputs make {sum(counts)} pieces (limit {MAX_COPIES})")
                return
            configs = [_encode(bounds) for of_one in cuts for bounds in of_one]
        else:
            symbol = GET
            count = sum(lengths)
            if not count:
                what = "it is empty, or neither an array nor an index (tasks.split makes an index of bytes)"
                self._fail(node, f"{node.kind.symbol}: the input has no elements: {what}")
                return
            if count > MAX_COPIES:
                self._fail(node, f"{node.kind.symbol}: the input has {count} elements (limit {MAX_COPIES})")
                return
            counts = lengths
            configs = [_encode(GetConfig(i)) for length in lengths for i in range(length)]
        inputs = [[source] for source, pieces in zip(sources, counts, strict=True) for _ in range(pieces)]
        kind = self._kinds.find(symbol, node.kind.label, _LIGHT)
        self._check_room(node.session, len(configs))
        self._expand(node, self._make(node, kind, configs, inputs))

    def _fail(self, node: Node, error: str) -> None:
        self._graph.fail(node, Failure(node.users_number, "", error))

    # -- Their consumers ----------------------------------------------------------------------------------------------

    def _copy(self, node: Node) -> None:
        """Make the copies of a consumer all of whose dynamic inputs are expanded."""
        inputs = _positional(node)
        dynamic = [source for source in node.inputs if source.flags & DYNAMIC]
        count = 1
        for source in dynamic:
            count *= len(source.inputs)
            if count > _MANY:
                break
        if count > MAX_COPIES or count * len(inputs) > MAX_INPUTS:
            error = f"its dynamic inputs have {count} combinations, and it is copied for each (limit {MAX_COPIES}"
            self._fail(node, f"{error}, and {MAX_INPUTS} inputs of all copies together)")
            return
        self._check_room(node.session, count + sum(len(source.inputs) for source in dynamic))
        parts = {source: self._parts(source) for source in dynamic}
        in_order = [source for source in dict.fromkeys(inputs) if source in parts]
        own = []
        for pieces in product(*[parts[source] for source in in_order]):
            piece_of = dict(zip(in_order, pieces, strict=True))
            own.append([piece_of.get(source, source) for source in inputs])
        copies = self._make(node, node.kind, [node.config()] * count, own)
        self._expand(node, copies)

    def _check_room(self, session: Session, count: int) -> None:
        """ProtocolError where the server is not to make up to so many tasks more; before it has begun to."""
        if session.n_made + count > MAX_MADE_TASKS or not session.has_numbers(count):
            raise ProtocolError(f"it would be copied, but its session has too many copies (limit {MAX_MADE_TASKS})")

    # -- Both ---------------------------------------------------------------------------------------------------------

    def _expand(self, node: Node, parts: list[Node]) -> None:
        node.flags |= EXPANDED
        kind = self._kinds.find(ARRAY_MAKE, node.kind.label, _LIGHT)
        self._graph.become(node, kind, b"", parts)
        self._to_tell.append(node)

    def _make(self, of: Node, kind: Kind, configs: list[bytes], inputs: list[list[Node]]) -> list[Node]:
        """New tasks of one kind, run for `of`, each with its inputs by position. Nobody consumes them yet."""
        session = of.session
        first = session.take_numbers(len(configs))
        numbers = [[source.number for source in own] for own in inputs]
        chunk = MadeChunk(first, of.level(), configs, numbers, of.users_number, of.rules())
        session.enter_chunk(chunk)
        if self._graph.journal is not None:
            self._graph.journal.append(_made_fact(of, kind, first, configs, numbers))
        made = []
        for number, own in enumerate(inputs, first):
            node = Node(session, number, chunk, kind, tuple(dict.fromkeys(own)), 0)
            if len(node.inputs) < len(own):
                node.flags |= REPEATS
            session.put(node)
            self._graph.connect(node, _ALL_EARLIER)
            made.append(node)
        if self._graph.facts is not None:
            self._graph.facts += plan_of(session.id, made)
        return made


def _made_fact(of: Node, kind: Kind, first: int, configs: list[bytes], inputs: list[list[int]]) -> TasksMade:
    ends = array("I", accumulate(map(len, inputs)))
    return TasksMade(
        of.session.id,
        first,
        of.users_number,
        of.level(),
        of.rules(),
        kind.symbol,
        kind.label,
        kind.request,
        kind.time_limit_ms,
        configs if len(set(configs)) > 1 else configs[:1],
        ends.tobytes(),
        ids_column(number for own in inputs for number in own),
    )


def _positional(node: Node) -> list[Node]:
    if not node.flags & REPEATS:
        return list(node.inputs)
    by_number = {source.number: source for source in node.inputs}
    return [by_number[number] for number in node.input_numbers()]


def _slices(length: int, n_all: int, total: int) -> list[SliceConfig]:
    """Stretches of one input of a dslice, none empty, so that all of its inputs have about `n_all` together."""
    count = min(length, max(1, n_all * length // total)) if length else 0
    return [SliceConfig(i * length // count, (i + 1) * length // count) for i in range(count)]


def _take_consumers(node: Node) -> list[Node]:
    consumers, node.consumers = node.consumers or [], None
    return consumers
