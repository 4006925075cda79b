"""Facts of the journal: what a server that starts again has to know. None of them is about scheduling.

A journal is a sequence of them in the order in which they came to be; `core.past` folds them, `core.restore` makes a
graph of that. Columns and ids are as in `messages`. What is written stays readable: fields are only ever added at the
end, with a default, and whatever changes the meaning of what is there raises `FORMAT`.
"""

from typing import Final

from msgspec import Struct

from loom.messages import Count, Id, PlanChunk, Rules
from loom.resources import Request

FORMAT: Final = 1


class Fact(Struct, array_like=True, gc=False):
    """Base of all."""


class ServerStarted(Fact, tag=1):
    """From here on a new incarnation speaks. `server` names the journal: all its incarnations have it in common.

    `next_session` and `next_worker` are above every number used so far.
    """

    server: Id
    incarnation: Id
    next_session: Id
    next_worker: Id
    version: str


class WorkerAttached(Fact, tag=2):
    worker: Id
    name: str


class WorkerDetached(Fact, tag=3):
    worker: Id


class SessionBegan(Fact, tag=4):
    """`name` is empty for one that ends with its client.

    `starts`, where facts were left out: incarnations that it was there in, and the first number that was free when they
    began. `who` is its client, for people.
    """

    session: Id
    token: bytes
    name: str
    starts: list[tuple[Id, Id]]
    who: str = ""


class SessionTaken(Fact, tag=5):
    """Another process has taken up a named session. What had no name in it was released before."""

    session: Id
    token: bytes
    who: str = ""


class SessionEnded(Fact, tag=6):
    session: Id


class SessionAt(Fact, tag=7):
    """How far a session has come, said where facts were left out: commands applied, tasks numbered."""

    session: Id
    seq: Id
    next_number: Id
    plan_open: bool


class PlanAdded(Fact, tag=8):
    """Tasks of a client's, or (`stands_for` not None) those that a task of its was redirected to.

    `seq`: of the command, 0 where there is none. `names`: numbers of results, and their names.
    """

    session: Id
    seq: Id
    chunk: PlanChunk
    stands_for: Id | None
    names: list[tuple[Id, str]]


class PlanAbandoned(Fact, tag=9):
    """The rest of a plan that was under way never comes."""

    session: Id


class TasksMade(Fact, tag=10):
    """Tasks that the server made itself, with consecutive numbers. `configs`: one for each, or one for all.

    `input_ends` is an I column (cumulative), `inputs` a Q column.
    """

    session: Id
    first: Id
    stands_for: Id | None
    level: Count
    rules: Rules
    symbol: str
    label: str
    request: Request
    time_limit_ms: Count
    configs: list[bytes]
    input_ends: bytes
    inputs: bytes


class TaskBecame(Fact, tag=11):
    """A task has another spec from now on; its level, rules and checkpoint stay. `flags` as in `core.node`."""

    session: Id
    number: Id
    symbol: str
    label: str
    request: Request
    time_limit_ms: Count
    config: bytes
    inputs: bytes
    flags: Count


class TaskMarked(Fact, tag=12):
    """`flags` as in `core.node`, all that a task has to keep."""

    session: Id
    number: Id
    flags: Count


class TasksFinished(Fact, tag=13):
    """Results were accepted: global ids, attempts, sizes (Q columns). `lengths`: (row, length) where it is not 0."""

    tasks: bytes
    attempts: bytes
    sizes: bytes
    lengths: list[tuple[Count, Count]]


class TasksFailed(Fact, tag=14):
    """`numbers`: the task that failed and those that depend on it; the rest is what their client was told."""

    session: Id
    numbers: bytes
    task: Id
    worker: str
    error: str


class ObjectsSaved(Fact, tag=15):
    """The checkpoints of these are in place (`tasks`: Q column of global ids)."""

    tasks: bytes


class ResultsReleased(Fact, tag=16):
    session: Id
    seq: Id
    numbers: bytes


class ResultsCancelled(Fact, tag=17):
    session: Id
    seq: Id
    numbers: bytes


class AllocationsKept(Fact, tag=18):
    """What the server's allocation queues and their jobs are now, as deploy.batch writes it. It replaces what was."""

    state: bytes


AnyFact = (
    ServerStarted
    | WorkerAttached
    | WorkerDetached
    | SessionBegan
    | SessionTaken
    | SessionEnded
    | SessionAt
    | PlanAdded
    | PlanAbandoned
    | TasksMade
    | TaskBecame
    | TaskMarked
    | TasksFinished
    | TasksFailed
    | ObjectsSaved
    | ResultsReleased
    | ResultsCancelled
    | AllocationsKept
)
