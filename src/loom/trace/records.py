"""What stands in a trace, one struct a kind of record.

A file of a trace is a row of frames: a 32-bit little-endian length, then that many bytes of msgpack, one record. The
first is `Opened`. A process may be killed at any time, so a file may end inside a frame. Times are in microseconds of
the host's monotonic clock (`time.monotonic_ns() // 1000`); `Opened` says what wall clock time one of them was. Columns
are little-endian as in `loom.messages`. Task ids are global (`loom.ids`).

There are no checksums. So every number has bounds, above which a record is taken for damaged: whoever draws what is
read can count on that and multiply.
"""

import struct
from typing import Annotated, Final

from msgspec import Meta, Struct

from loom.ids import NUMBER_BITS, NUMBER_MASK
from loom.limits import MAX_CPUS

VERSION: Final = 1
SUFFIX: Final = ".trace"

RAN: Final = struct.Struct("<QIHQQQ")  # a row of TasksRan: packed at once, this costs a traced worker least
LOOP_LANE: Final = 0xFFFF  # of a task that ran in its worker's loop, or without a core of its own
MAX_US: Final = 1 << 53  # some 285 years

Time = Annotated[int, Meta(ge=0, le=MAX_US)]
Cpus = Annotated[int, Meta(ge=0, le=MAX_CPUS)]
Lane = Annotated[int, Meta(ge=0, le=LOOP_LANE)]
Session = Annotated[int, Meta(ge=0, lt=1 << 64 - NUMBER_BITS)]
Number = Annotated[int, Meta(ge=0, le=NUMBER_MASK)]
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Id = Annotated[int, Meta(ge=0)]


class Record(Struct, array_like=True, gc=False):
    """Base of all; later versions may add fields at the end."""


class Opened(Record, tag=1):
    """Who writes. `role` is "server" or "worker"; `worker` is its number at the server (0: the server itself).

    `extras` as in messages.RegisterWorker. `wall_us` is the wall clock (since 1970) at `monotonic_us`. `incarnation` is
    the server's: files with the same belong together, as task ids and workers' numbers are those of one server.
    """

    version: Count
    role: str
    worker: Count
    name: str
    cpus: Cpus
    extras: list[tuple[str, Count]]
    monotonic_us: Time
    wall_us: Time
    incarnation: Count = 0


# -- In the file of a worker ------------------------------------------------------------------------------------------


class KindNamed(Record, tag=2):
    """`label` is the part of labels up to `:`."""

    kind: Count
    symbol: str
    label: str
    cpus: Cpus
    extras: list[tuple[str, Count]]


class TasksRan(Record, tag=3):
    """Tasks that ended well, one row of RAN each: task, kind, lane, begun_us, duration_us, size_bytes of the result.

    The lane is the first of the worker's cores that the task had, or LOOP_LANE.
    """

    rows: bytes


class TaskEndedBadly(Record, tag=4):
    """It failed, was cancelled, or took its process down."""

    task: Id
    kind: Count
    lane: Lane
    begun_us: Time
    duration_us: Time
    error: str


class ObjectFetched(Record, tag=5):
    """An object came from another worker (`source`: its number at the server)."""

    object: Id
    source: Count
    size_bytes: Count
    begun_us: Time
    duration_us: Time


class Sampled(Record, tag=6):
    """`cpu_us`: processor time that the worker and all its processes have used so far; `memory_bytes`: what they have
    in memory now; `store_bytes` in `n_objects`: what the worker holds.
    """

    at_us: Time
    cpu_us: Time
    memory_bytes: Count
    store_bytes: Count
    n_objects: Count


class CheckpointSaved(Record, tag=7):
    object: Id
    size_bytes: Count
    begun_us: Time
    duration_us: Time
    error: str


# -- In the file of the server ----------------------------------------------------------------------------------------


class PlanGrew(Record, tag=32):
    """A stretch of a session's plan, in the columns of messages.PlanChunk: task `first + i` is row i.

    Inputs are numbers of the same session, by position.
    """

    at_us: Time
    session: Session
    first: Number
    symbols: list[str]
    labels: list[str]
    symbol_of: bytes  # H
    label_of: bytes  # H
    input_ends: bytes  # I, cumulative
    inputs: bytes  # Q


class InputsChanged(Record, tag=33):
    """A task has other inputs from now on: it was redirected or expanded, or is a consumer of such a task.

    `symbol` is what it does now; empty: nothing, others have taken its place.
    """

    at_us: Time
    session: Session
    number: Number
    symbol: str
    inputs: bytes  # Q


class TaskFailed(Record, tag=34):
    """A task failed by itself, not over an input. `worker` is the name of where; empty: the server found it."""

    at_us: Time
    session: Session
    number: Number
    worker: str
    error: str


class WorkerJoined(Record, tag=35):
    at_us: Time
    worker: Count
    name: str
    cpus: Cpus
    extras: list[tuple[str, Count]]


class WorkerLeft(Record, tag=36):
    at_us: Time
    worker: Count


AnyRecord = (
    Opened
    | KindNamed
    | TasksRan
    | TaskEndedBadly
    | ObjectFetched
    | Sampled
    | CheckpointSaved
    | PlanGrew
    | InputsChanged
    | TaskFailed
    | WorkerJoined
    | WorkerLeft
)
