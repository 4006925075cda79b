"""Tasks of one session that wait for a worker, in the order in which they should be sent."""

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import islice

from loom.core import states
from loom.core.node import SUSPECT, Node
from loom.limits import SMALL_OBJECT_BYTES


def is_root(node: Node) -> bool:
    """Whether it makes data out of next to none: nothing large can go when it is done."""
    for source in node.inputs:  # noqa: SIM110  (a generator takes three times as long)
        if source.size_bytes > SMALL_OBJECT_BYTES:
            return False
    return True


class _Ranks:
    """Highest rank first, first come first served within one. Entries that have no business here any more are passed
    over: they are not READY, or on trial.
    """

    __slots__ = ("_by_rank", "_ranks")

    def __init__(self) -> None:
        self._by_rank: dict[int, deque[Node]] = {}
        self._ranks: list[int] = []  # heap of negated ranks that have a queue

    def queue_of(self, rank: int) -> deque[Node]:
        queue = self._by_rank.get(rank)
        if queue is None:
            queue = self._by_rank[rank] = deque()
            heappush(self._ranks, -rank)
        return queue

    def top(self) -> int | None:
        """The rank of what comes first."""
        ranks = self._ranks
        while ranks:
            rank = -ranks[0]
            queue = self._by_rank[rank]
            while queue:
                node = queue[0]
                if node.state == states.READY and not node.flags & SUSPECT:
                    return rank
                queue.popleft()
            heappop(ranks)
            del self._by_rank[rank]
        return None

    def pop(self, rank: int) -> Node:
        """What comes first; `rank` is what `top` has just given."""
        return self._by_rank[rank].popleft()

    def prune(self) -> None:
        for queue in self._by_rank.values():
            while queue:
                node = queue[0]
                if node.state == states.READY and not node.flags & SUSPECT:
                    break
                queue.popleft()

    def __bool__(self) -> bool:
        return bool(self._ranks)

    def nodes(self) -> list[Node]:
        return [node for queue in self._by_rank.values() for node in queue]

    def entries(self) -> Iterator[Node]:
        for queue in self._by_rank.values():
            yield from queue

    def count(self) -> int:
        return sum(map(len, self._by_rank.values()))


class ReadyQueue:
    """Those that come first by rank; of equal ones those that take something large in, so that it can go."""

    __slots__ = ("_others", "_roots")

    def __init__(self) -> None:
        self._roots = _Ranks()
        self._others = _Ranks()

    def push(self, node: Node) -> None:
        self._of(node).queue_of(node.rank()).append(node)

    def push_back(self, node: Node) -> None:
        """Return what `pop` has just given: it comes first again."""
        self._of(node).queue_of(node.rank()).appendleft(node)

    def _of(self, node: Node) -> _Ranks:
        return self._roots if is_root(node) else self._others

    def top(self, roots: bool = True) -> int | None:
        """The rank of what comes first, as in `pop`; None where there is nothing."""
        tops = (self._others.top(), self._roots.top() if roots else None)
        return max((top for top in tops if top is not None), default=None)

    def pop(self, roots: bool = True) -> Node | None:
        """What comes first; without `roots` only what takes something large in."""
        root = self._roots.top() if roots else None
        other = self._others.top()
        if other is not None and (root is None or other >= root):
            return self._others.pop(other)
        return self._roots.pop(root) if root is not None else None

    def consumers(self, count: int) -> list[Node]:
        """Up to so many of those that take something large in, in no order."""
        found = (node for node in self._others.nodes() if node.state == states.READY and not node.flags & SUSPECT)
        return list(islice(found, count))

    def __bool__(self) -> bool:
        return bool(self._roots) or bool(self._others)

    def nodes(self) -> list[Node]:
        """Every entry, stale ones included; O(n)."""
        return self._others.nodes() + self._roots.nodes()

    def prune(self) -> None:
        """Let go of stale entries as far as none of the same rank that is not is before them; O(those and ranks)."""
        self._others.prune()
        self._roots.prune()

    def entries(self) -> Iterator[Node]:
        """The same, one after the other: to look at some."""
        yield from self._others.entries()
        yield from self._roots.entries()

    def count(self) -> int:
        """How many entries there are; O(ranks)."""
        return self._others.count() + self._roots.count()
