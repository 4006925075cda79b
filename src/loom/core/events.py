"""What shells tell the cores, and what cores tell the shells to do. Links are numbered by the shell."""

from msgspec import Struct

from loom.facts import AnyFact
from loom.messages import Message, PlanChunk
from loom.resources import Request


class LinkUp(Struct, gc=False):
    """A peer has proven the key; `role` is "client" or "worker"."""

    link: int
    role: str


class LinkDown(Struct, gc=False):
    link: int


class LinkFull(Struct, gc=False):
    """More is waiting on this link than its high-water mark: stop feeding it."""

    link: int


class LinkDrained(Struct, gc=False):
    link: int


class Received(Struct, gc=False):
    link: int
    messages: list[Message]


class KeepAllocations(Struct, gc=False):
    """For the journal: what who looks after the allocation queues wants to know when the server starts again."""

    state: bytes


ServerEvent = LinkUp | LinkDown | LinkFull | LinkDrained | Received | KeepAllocations


class Send(Struct, gc=False):
    """One frame for one peer: everything this turn has to say to it, in order."""

    link: int
    messages: list[Message]


class CloseLink(Struct, gc=False):
    """The peer said goodbye, or is at fault (it broke the protocol); sent messages go out first."""

    link: int
    reason: str
    at_fault: bool = False


class Shutdown(Struct, gc=False):
    """Leave once everything is sent."""


class StartTrace(Struct, gc=False):
    """Write a trace below this directory from now on; empty: no more."""

    path: bytes


class PlanGrew(Struct, gc=False):
    session: int
    chunk: PlanChunk


class InputsChanged(Struct, gc=False):
    """A task has become something else, or has other inputs (numbers by position): redirection, expansion.

    An empty symbol: it does nothing any more, others have taken its place.
    """

    session: int
    number: int
    symbol: str
    inputs: list[int]


class TaskFailed(Struct, gc=False):
    """A task failed by itself, not over an input. `worker`: the name of where."""

    session: int
    number: int
    worker: str
    error: str


class WorkerJoined(Struct, gc=False):
    worker: int
    name: str
    cpus: int
    extras: list[tuple[str, int]]


class WorkerLeft(Struct, gc=False):
    worker: int


Fact = PlanGrew | InputsChanged | TaskFailed | WorkerJoined | WorkerLeft


class Facts(Struct, gc=False):
    """For the trace, while one is written. Comes before anything that is sent because of them."""

    facts: list[Fact]


class Record(Struct, gc=False):
    """For the journal. Comes first; what is sent to clients in the same turn goes out when it is on disk."""

    facts: list[AnyFact]


class TasksWait(Struct, gc=False):
    """Tasks are ready and no present worker will ever take them: they wait for one that does."""

    session: int
    symbol: str
    request: Request
    needs_s: float  # how long one takes, as far as is known


class WorkerCame(Struct, gc=False):
    """For the log."""

    link: int
    name: str
    cpus: int


class WorkerGone(Struct, gc=False):
    """For the log. `n_tasks` are run again elsewhere, `n_objects` that somebody needs were only there.

    `left`: it had said that it would go.
    """

    name: str
    left: bool
    n_tasks: int
    n_objects: int


class NoWorkers(Struct, gc=False):
    """Tasks are ready, and there is no worker at all."""


class DisksFull(Struct, gc=False):
    """Tasks are ready, and no worker has room on its disk for what they would make."""


class Settled(Struct, gc=False):
    """For the log, after a restart: all workers are back but these; `n_objects` that somebody needs are not there."""

    missing: list[str]
    n_objects: int


class AskedAllocations(Struct, gc=False):
    """A question for who looks after the allocation queues, and where the answer goes."""

    link: int
    seq: int
    question: bytes


ServerEffect = (
    Send
    | CloseLink
    | Shutdown
    | StartTrace
    | Facts
    | Record
    | TasksWait
    | WorkerCame
    | WorkerGone
    | NoWorkers
    | DisksFull
    | Settled
    | AskedAllocations
)
