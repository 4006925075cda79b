"""Tasks of one session that wait for a worker, in the order in which they should be sent."""

from collections import deque
from heapq import heappop, heappush

from loom.core import states
from loom.core.node import Node


class ReadyQueue:
    """Highest level first, first come first served within a level. Entries that are READY no more are passed over."""

    __slots__ = ("_by_level", "_levels")

    def __init__(self) -> None:
        self._by_level: dict[int, deque[Node]] = {}
        self._levels: list[int] = []  # heap of negated levels that have a queue

    def push(self, node: Node) -> None:
        level = node.level()
        queue = self._by_level.get(level)
        if queue is None:
            queue = self._by_level[level] = deque()
            heappush(self._levels, -level)
        queue.append(node)

    def push_back(self, node: Node) -> None:
        """Return what `pop` has just given: it comes first again."""
        level = node.level()
        queue = self._by_level.get(level)
        if queue is None:
            queue = self._by_level[level] = deque()
            heappush(self._levels, -level)
        queue.appendleft(node)

    def pop(self) -> Node | None:
        while self._levels:
            level = -self._levels[0]
            queue = self._by_level[level]
            while queue:
                node = queue.popleft()
                if node.state == states.READY:
                    return node
            heappop(self._levels)
            del self._by_level[level]
        return None

    def __bool__(self) -> bool:
        return bool(self._levels)

    def nodes(self) -> list[Node]:
        """Every entry, stale ones included; O(n)."""
        return [node for queue in self._by_level.values() for node in queue]
