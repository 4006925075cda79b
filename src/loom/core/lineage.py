"""How much the server remembers of tasks that are over, so that what is lost of them can be made again.

A spec is kept as long as a live task descends from its task. The bytes of all specs, those of tasks that are still to
run included, have a limit: above it those of the oldest tasks that are over are forgotten, a chunk of a plan at a time.
When an object of such a task is lost later, it fails and says why.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from loom.core import states
from loom.core.node import COPIED, CUT, DYNAMIC, EXPANDED, NO_RULES, REPEATS, WRITING, MadeChunk, Node
from loom.limits import MIB

if TYPE_CHECKING:
    from loom.core.graph import Graph
    from loom.core.session import Session

_LOOKS: Final = 4  # at old chunks for each new one: some of them have unfinished tasks
_NEEDS_INPUTS: Final = DYNAMIC | COPIED | EXPANDED | WRITING  # as long as it is there


class Lineage:
    def __init__(self, graph: Graph, limit_bytes: int) -> None:
        self._graph = graph
        self._limit_bytes = limit_bytes

    def story(self) -> str:
        return (
            "its object was lost and cannot be made again: the server has forgotten what the task was, as those of all"
            f" tasks take more than {self._limit_bytes / MIB:,.0f} MiB (loom-server --lineage-limit)"
        )

    def limit(self) -> None:
        """Forget old specs where there are too many bytes of them."""
        sessions = self._graph.sessions.values()
        if sum(session.spec_bytes for session in sessions) > self._limit_bytes:
            session = max(sessions, key=lambda session: session.spec_bytes)
            for first in list(islice(session.chunks, _LOOKS)):
                if first in session.chunks and not self._forget(session, first):
                    session.chunks[first] = session.chunks.pop(first)  # some other time

    def _forget(self, session: Session, first: int) -> bool:
        """Forget the specs of a chunk, if all its tasks are over."""
        chunk = session.chunks[first]
        numbers = range(first, first + len(chunk))
        nodes = [node for node in map(session.find, numbers) if node is not None and node.chunk is chunk]
        if any(node.state in states.UNFINISHED or node.flags & _NEEDS_INPUTS for node in nodes):
            return False
        for node in nodes:
            self._cut(session, node)
        return True

    def _cut(self, session: Session, node: Node) -> None:
        made = MadeChunk(node.number, 0, [b""], [[]], node.chunk.stands_for, NO_RULES)
        session.leave_chunk(node)
        session.enter_chunk(made)
        node.chunk = made
        node.flags = node.flags & ~REPEATS | CUT
        inputs, node.inputs = node.inputs, ()
        for source in inputs:
            source.n_children -= 1
            self._graph.let_go(source)
