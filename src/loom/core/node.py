"""One task in the server's graph, and the chunk of a plan that holds its spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loom.core import states
from loom.core.columns import column
from loom.errors import ProtocolError
from loom.ids import NUMBER_BITS
from loom.messages import PlanChunk, Rules

if TYPE_CHECKING:
    from loom.core.cluster import Worker
    from loom.core.kinds import Kind
    from loom.core.session import Session

# Node flags
WANTED: Final = 1  # its object is wanted as one: a live future stands for it
INLINED: Final = 2  # its client has the object itself
RECALLED: Final = 4  # its worker has been asked to give it back, or will do so unasked
REPEATS: Final = 16  # some input stands at several positions
LISTED: Final = 8  # stopped waiting before its inputs came: it may still stand in their `consumers`
DYNAMIC: Final = 32  # a dslice or dget (`expand`)
COPIED: Final = 64  # a consumer of a dynamic task
EXPANDED: Final = 128  # a dynamic or copied task that now stands for its inputs, an array of them
GATHERED: Final = 256  # some task takes its object as one, as a future does
WRITING: Final = 512  # its object is kept until its checkpoint is in place
ALIAS: Final = 2048  # it was redirected: its object is that of its input
HAS_LENGTH: Final = 1024  # the session knows the length of its object
CANCELLED: Final = 4096  # its future was cancelled, and counts as failed until it is released
CUT: Final = 8192  # its spec is forgotten: an object that is lost cannot be made again
SUSPECT: Final = 16384  # one more worker lost with it, and it is not run again

KEPT: Final = DYNAMIC | COPIED | EXPANDED | GATHERED | ALIAS  # what a server that starts again has to know of these

NO_RULES: Final = Rules()
_PRIORITY_SHIFT: Final = 32  # above all levels


_NUMBER_BYTES: Final = 8
_COLUMNS: Final = 3  # of four bytes a row that are kept, each as long as the levels


def _ascends(offsets: memoryview[int]) -> bool:
    numbers = offsets.tolist()
    return numbers == sorted(numbers)


class Chunk:
    """Specs of consecutive tasks in the columns they came in; kept as long as a node refers to it.

    `stands_for`: the number of the task of a client's that these are run for; None: they are such themselves. `n_live`
    counts the nodes that refer to it.
    """

    __slots__ = (
        "_rules",
        "_rules_of",
        "checkpoints",
        "config_ends",
        "configs",
        "first",
        "input_ends",
        "inputs",
        "levels",
        "n_live",
        "size_bytes",
        "stands_for",
    )

    def __init__(self, plan: PlanChunk, stands_for: int | None) -> None:
        self.first = plan.first
        self.stands_for = stands_for
        self.levels = column(plan.levels, "I")
        self.input_ends = column(plan.input_ends, "I")
        self.inputs = column(plan.inputs, "Q")
        self.config_ends = column(plan.config_ends, "I")
        self.configs = plan.configs
        rows = len(self.levels)
        if not len(self.input_ends) == len(self.config_ends) == rows > 0:
            raise ProtocolError("a plan chunk's columns differ in length")
        if not (_ascends(self.input_ends) and _ascends(self.config_ends)):
            raise ProtocolError("a plan chunk's offsets do not ascend")
        if self.input_ends[-1] != len(self.inputs) or self.config_ends[-1] != len(self.configs):
            raise ProtocolError("a plan chunk's last offsets do not match its data")
        self.checkpoints: dict[int, bytes] | None = None
        if plan.checkpoint_rows:
            saved = column(plan.checkpoint_rows, "I")
            if len(saved) != len(plan.checkpoint_paths) or max(saved) >= rows:
                raise ProtocolError("a plan chunk's checkpoints do not match its rows")
            self.checkpoints = dict(zip(saved, plan.checkpoint_paths, strict=True))
        self._rules = plan.rules
        self._rules_of = column(plan.rules_of, "H") if plan.rules_of else None
        self.n_live = 0
        self.size_bytes = len(plan.configs) + len(plan.inputs) + len(plan.levels) * _COLUMNS

    def __len__(self) -> int:
        return len(self.levels)

    def is_target(self, number: int) -> bool:
        """Whether it is the task that another one was redirected to."""
        return self.stands_for is not None and number == self.first + len(self.levels) - 1

    def rules(self, row: int) -> Rules:
        return NO_RULES if self._rules_of is None else self._rules[self._rules_of[row]]

    def rank(self, row: int) -> int:
        """What is higher comes first: priority, then level."""
        if self._rules_of is None:
            return self.levels[row]
        return self.levels[row] + (self.rules(row).priority << _PRIORITY_SHIFT)

    def level(self, row: int) -> int:
        return self.levels[row]

    def checkpoint(self, row: int) -> bytes:
        """Where the row's object is to be saved; empty: nowhere."""
        return self.checkpoints.get(row, b"") if self.checkpoints is not None else b""

    def config(self, row: int) -> bytes:
        return self.configs[self.config_ends[row - 1] if row else 0 : self.config_ends[row]]

    def config_size(self, row: int) -> int:
        return self.config_ends[row] - (self.config_ends[row - 1] if row else 0)

    def input_numbers(self, row: int) -> list[int]:
        """Numbers of the row's inputs by position, repeated ones included."""
        return self.inputs[self.input_ends[row - 1] if row else 0 : self.input_ends[row]].tolist()


class MadeChunk:
    """Specs that the server writes itself: copies of a task, or one task that becomes something else.

    `stands_for` and `n_live` as for Chunk.
    """

    __slots__ = (
        "_checkpoint",
        "_configs",
        "_inputs",
        "_level",
        "_rules",
        "first",
        "n_live",
        "size_bytes",
        "stands_for",
    )

    def __init__(
        self,
        first: int,
        level: int,
        configs: list[bytes],
        inputs: list[list[int]],
        stands_for: int | None,
        rules: Rules,
        checkpoint: bytes = b"",
    ) -> None:
        self.first = first
        self.stands_for = stands_for
        self._level = level
        self._configs = configs
        self._inputs = inputs
        self._rules = rules
        self._checkpoint = checkpoint  # of the one task
        self.n_live = 0
        self.size_bytes = sum(map(len, configs)) + _NUMBER_BYTES * sum(map(len, inputs))

    def __len__(self) -> int:
        return len(self._configs)

    def rules(self, _row: int) -> Rules:
        return self._rules

    def rank(self, _row: int) -> int:
        return self._level + (self._rules.priority << _PRIORITY_SHIFT)

    def level(self, _row: int) -> int:
        return self._level

    def checkpoint(self, _row: int) -> bytes:
        return self._checkpoint

    def config(self, row: int) -> bytes:
        return self._configs[row]

    def config_size(self, row: int) -> int:
        return len(self._configs[row])

    def input_numbers(self, row: int) -> list[int]:
        return self._inputs[row]


class Node:
    """A task that is live, or that a live task descends from.

    `n_unmet`: unique inputs whose object is not there. `n_pending`: unfinished consumers (unique), those in chunks
    still to come included: while it is above 0 the object is needed. `n_children`: consumers that exist at all or are
    still to come: while it is above 0 the spec is needed. `consumers`: who to tell when the object comes; only while
    it is not there. `worker`: whom it is assigned to, then the first holder; `replicas`: further holders, only while
    it is finished.
    """

    __slots__ = (
        "attempt",
        "chunk",
        "consumers",
        "flags",
        "inputs",
        "kind",
        "n_children",
        "n_pending",
        "n_unmet",
        "number",
        "replicas",
        "session",
        "size_bytes",
        "state",
        "worker",
    )

    def __init__(
        self,
        session: Session,
        number: int,
        chunk: Chunk | MadeChunk,
        kind: Kind,
        inputs: tuple[Node, ...],
        consumers: int,
    ) -> None:
        self.session = session
        self.number = number
        self.chunk = chunk
        self.kind = kind
        self.inputs = inputs
        self.consumers: list[Node] | None = None
        self.state = states.WAITING
        self.flags = 0
        self.n_unmet = 0
        self.n_pending = consumers
        self.n_children = consumers
        self.worker: Worker | None = None
        self.replicas: list[Worker] | None = None
        self.attempt = session.before_first_attempt
        self.size_bytes = 0

    @property
    def id(self) -> int:
        return self.session.id << NUMBER_BITS | self.number

    @property
    def users_number(self) -> int:
        """By which a client knows the task, or the one that it is run for."""
        stands_for = self.chunk.stands_for
        return self.number if stands_for is None else stands_for

    def outlive_attempts(self) -> None:
        """Attempts of an earlier server are over: those to come are told from all of its."""
        if self.attempt < self.session.before_first_attempt:
            self.attempt = self.session.before_first_attempt

    def move(self, state: int) -> None:
        """Change state; a move that is not in the table is a bug of ours."""
        assert state in states.ALLOWED[self.state], f"{self} must not become {states.NAMES[state]}"
        self.state = state

    def level(self) -> int:
        return self.chunk.level(self.number - self.chunk.first)

    def rank(self) -> int:
        """The highest of those that can run comes first."""
        chunk = self.chunk
        return chunk.rank(self.number - chunk.first)

    def rules(self) -> Rules:
        return self.chunk.rules(self.number - self.chunk.first)

    def config(self) -> bytes:
        return self.chunk.config(self.number - self.chunk.first)

    def config_size(self) -> int:
        return self.chunk.config_size(self.number - self.chunk.first)

    def checkpoint(self) -> bytes:
        """Where its object is to be saved; empty: nowhere."""
        return self.chunk.checkpoint(self.number - self.chunk.first)

    def input_numbers(self) -> list[int]:
        """Numbers of the inputs by position."""
        return self.chunk.input_numbers(self.number - self.chunk.first)

    def input_ids(self) -> list[int]:
        """Object ids of the inputs by position."""
        base = self.session.id << NUMBER_BITS
        return [base | number for number in self.input_numbers()]

    def is_held(self) -> bool:
        """Whether it must not run: it is still to be expanded, or its parts are wanted and not the array of them."""
        flags = self.flags
        return bool(flags & (DYNAMIC | COPIED)) and not (flags & EXPANDED and flags & (WANTED | GATHERED))

    def holders(self) -> list[Worker]:
        """Workers that hold the object of a finished task."""
        first = [self.worker] if self.worker is not None else []
        return first + self.replicas if self.replicas else first

    def __repr__(self) -> str:
        return (
            f"<task {self.session.id}:{self.number} {self.kind.symbol} {states.NAMES[self.state]} unmet={self.n_unmet}"
            f" pending={self.n_pending} children={self.n_children} flags={self.flags} worker={self.worker}>"
        )
