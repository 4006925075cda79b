"""One client's world in the server: its tasks, its ready queues, what it has still to be told.

One with a name may have several clients, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from loom.core.node import SUSPECT, Chunk, MadeChunk, Node
from loom.core.ready import ReadyQueue
from loom.errors import ProtocolError
from loom.ids import SERVER_MADE, SERVER_MADE_COUNT, before_first_attempt, first_server_made

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loom.core.cluster import Worker
    from loom.core.kinds import QueueKey
    from loom.messages import FailedResult

_PAGE_BITS: Final = 10
PAGE_TASKS: Final = 1 << _PAGE_BITS
_ROW_MASK: Final = PAGE_TASKS - 1


class Failure(NamedTuple):
    """Why a task failed: `task` is where it began; dependents share it."""

    task: int
    worker: str
    error: str


class Tries(NamedTuple):
    """How often a task has failed, and where it did so last."""

    n_failed: int
    worker: Worker | None


class Session:
    """`used_us`: core time handed out so far; the session with the least is served first."""

    __slots__ = (
        "_live",
        "_pages",
        "_server_made_end",
        "applied_seq",
        "before_first_attempt",
        "chunks",
        "crashes",
        "credit_bytes",
        "doubts",
        "ends_at",
        "failures",
        "failures_to_tell",
        "full",
        "has_dynamic",
        "has_priorities",
        "id",
        "lengths",
        "link",
        "n_made",
        "n_nodes",
        "name",
        "named",
        "names",
        "next_number",
        "next_server_made",
        "on_trial",
        "passed_over",
        "peers_told",
        "plan_first",
        "plan_open",
        "ready",
        "results_to_tell",
        "spec_bytes",
        "starts",
        "token",
        "tries",
        "unacked",
        "unborn",
        "unmet_said",
        "used_us",
        "who",
    )

    def __init__(self, id: int, token: bytes, credit_bytes: int, link: int | None, incarnation: int) -> None:
        self.id = id
        self.token = token
        self.name = ""  # with one it outlives its client
        self.who = ""  # its client, for people
        self.names: dict[str, int] = {}  # results that another client finds again
        self.named: dict[int, str] = {}  # the same by number
        self.link = link
        self.full = False
        self.ends_at: float | None = None  # unless its client comes back before
        self.starts: list[tuple[int, int]] = []  # as in core.past; empty for one that is new
        self.credit_bytes = credit_bytes
        self.before_first_attempt = before_first_attempt(incarnation)
        self.next_number = 0
        self.next_server_made = first_server_made(incarnation)
        self._server_made_end = self.next_server_made + SERVER_MADE_COUNT
        self.applied_seq = 0
        self.unacked = False
        self.used_us = 0
        self.passed_over: dict[QueueKey, float] = {}  # since when no worker has had room for what is first there
        self.unmet_said: set[QueueKey] = set()  # requests that no worker could meet, of which was told
        self.n_nodes = 0
        self.n_made = 0  # of them, those that the server numbers
        self.has_dynamic = False  # some task is or was dynamic
        self.has_priorities = False  # some task has or had one
        self.plan_first = 0  # where its last plan begins
        self.plan_open = False  # chunks of its last plan are still to come
        self.unborn: dict[int, int] = {}  # consumers in these, by number of the task that they take
        self.chunks: dict[int, Chunk] = {}  # those of plans, oldest first, by their first number
        self.spec_bytes = 0  # of the chunks that tasks refer to
        self.tries: dict[int, Tries] = {}  # of tasks that have failed and are run again
        self.doubts: dict[int, int] = {}  # how often tasks came back because an input could not be had
        self.crashes: dict[int, int] = {}  # with how many lost workers a task was lost
        self.lengths: dict[int, int] = {}  # of finished tasks' objects, where it is not 0
        self._pages: dict[int, list[Node | None]] = {}
        self._live: dict[int, int] = {}  # tasks in each page
        self.ready: dict[QueueKey, ReadyQueue] = {}
        self.on_trial: dict[Node, None] = {}  # ready tasks that may have taken workers with them: they run apart
        self.failures: dict[int, Failure] = {}
        self.results_to_tell: list[tuple[Node, bytes | None]] = []
        self.failures_to_tell: list[FailedResult] = []
        self.peers_told: set[int] = set()

    def __repr__(self) -> str:
        return f"<session {self.id}: {self.n_nodes} tasks>"

    def known_since(self, number: int, incarnation: int) -> bool:
        """Whether a server of that incarnation knew the task, and the journal has kept it.

        What was not in the journal when that server ended may have another meaning now.
        """
        if not self.starts or incarnation < self.starts[0][0]:  # nothing is known of what it was there, or whose
            return False
        later = [next_number for start, next_number in self.starts if start > incarnation]
        return number >= SERVER_MADE or (bool(later) and number < later[0])

    def find(self, number: int) -> Node | None:
        page = self._pages.get(number >> _PAGE_BITS)
        return page[number & _ROW_MASK] if page is not None else None

    def put(self, node: Node) -> None:
        key = node.number >> _PAGE_BITS
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = [None] * PAGE_TASKS
            self._live[key] = 0
        page[node.number & _ROW_MASK] = node
        self._live[key] += 1
        self.n_nodes += 1
        if node.number >= SERVER_MADE:
            self.n_made += 1

    def remove(self, node: Node) -> None:
        if self.tries or self.crashes or self.doubts:
            self.forget_troubles(node)
        self.leave_chunk(node)
        key = node.number >> _PAGE_BITS
        self.n_nodes -= 1
        if node.number >= SERVER_MADE:
            self.n_made -= 1
        self._live[key] -= 1
        if self._live[key]:
            self._pages[key][node.number & _ROW_MASK] = None
        else:
            del self._pages[key], self._live[key]

    def forget_troubles(self, node: Node) -> None:
        """The task is finished, or gone: what there was with it is over."""
        for troubles in (self.tries, self.crashes, self.doubts):
            troubles.pop(node.number, None)
        node.flags &= ~SUSPECT

    def enter_chunk(self, chunk: Chunk | MadeChunk) -> None:
        """All tasks of a chunk refer to it from now on."""
        chunk.n_live = len(chunk)
        self.spec_bytes += chunk.size_bytes

    def leave_chunk(self, node: Node) -> None:
        """The task refers to its chunk no longer."""
        chunk = node.chunk
        chunk.n_live -= 1
        if not chunk.n_live:
            self.spec_bytes -= chunk.size_bytes
            if self.chunks.get(chunk.first) is chunk:
                del self.chunks[chunk.first]

    def nodes(self) -> Iterator[Node]:
        """Every task in the order of numbers within a page; O(n)."""
        for page in list(self._pages.values()):
            for node in page:
                if node is not None:
                    yield node

    def push_ready(self, node: Node) -> None:
        if node.flags & SUSPECT:
            self.on_trial[node] = None
            return
        key = node.kind.queue_key
        queue = self.ready.get(key)
        if queue is None:
            queue = self.ready[key] = ReadyQueue()
        queue.push(node)

    def has_numbers(self, count: int) -> bool:
        """Whether there are so many for tasks that the server makes."""
        return self.next_server_made + count <= self._server_made_end

    def take_numbers(self, count: int) -> int:
        """Numbers for tasks that the server makes, from the one returned on. ProtocolError where there are no more."""
        first = self.next_server_made
        if not self.has_numbers(count):
            raise ProtocolError("the session has used up the numbers for tasks that the server makes")
        self.next_server_made = first + count
        return first

    def take_page(self) -> list[Node | None] | None:
        """Remove some page of tasks and return it: for taking a closed session apart in steps."""
        if not self._pages:
            return None
        return self._pages.popitem()[1]
