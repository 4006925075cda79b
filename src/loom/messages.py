"""Every struct that crosses a socket, by direction. A message is one struct here and one handler in a core.

Task ids are global (`ids.task_id`) between server and workers; a client speaks of numbers in its own session. Columns
(`bytes`) are little-endian arrays: `H` 16 bit, `I` 32 bit, `Q` 64 bit. Times are in microseconds, sizes in bytes.
`packed` is a whole small object as `data.pack` makes it: the server passes it on unopened.
"""

from typing import Annotated, Final

from msgspec import Meta, Struct

from loom.limits import (
    MAX_CHUNK_TASKS,
    MAX_CPUS,
    MAX_EXTRAS,
    MAX_KINDS,
    MAX_LABEL_CHARS,
    MAX_NAME_CHARS,
    MAX_PATH_BYTES,
    MAX_PEER_CHARS,
    MAX_PRIORITY,
    MAX_QUESTION_BYTES,
    MAX_RETIRED,
    MAX_RETRIES,
    MAX_SYMBOL_CHARS,
    MAX_TIME_LIMIT_MS,
    MAX_TOKEN_BYTES,
)
from loom.resources import Request

Symbol = Annotated[str, Meta(max_length=MAX_SYMBOL_CHARS)]
Label = Annotated[str, Meta(max_length=MAX_LABEL_CHARS)]
SessionName = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
ResultName = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
PeerText = Annotated[str, Meta(max_length=MAX_PEER_CHARS)]
Token = Annotated[bytes, Meta(max_length=MAX_TOKEN_BYTES)]
Path = Annotated[bytes, Meta(max_length=MAX_PATH_BYTES)]
Count = Annotated[int, Meta(ge=0)]
Id = Annotated[int, Meta(ge=0)]

_A_ROW_EACH: Final = Meta(max_length=MAX_CHUNK_TASKS)  # what arrives becomes some 50 times as much memory

RESULT = 1  # task flag: submitted by the client, its object is kept until released


class Message(Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """Base of everything on the wire."""


# -- Plans ------------------------------------------------------------------------------------------------------------


class Rules(Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """How often a task is run again after it failed, what comes before it, how long one run may take (0: it is not
    limited).
    """

    retries: Annotated[int, Meta(ge=0, le=MAX_RETRIES)] = 0
    priority: Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    time_limit_ms: Annotated[int, Meta(ge=0, le=MAX_TIME_LIMIT_MS)] = 0


class PlanChunk(Message):
    """A stretch of a plan in topological order: task `first + i` is row i of every column.

    Inputs are numbers of the session, lower than the task's own. `consumers` counts the unique tasks of the same plan
    (numbers from `plan_first` on) that take the row's object, those in later chunks included. Inputs below
    `plan_first` are futures of earlier plans. Levels are b-levels in tasks: the longest way down to a sink.
    """

    plan_first: Id
    first: Id
    symbols: Annotated[list[Symbol], _A_ROW_EACH]
    labels: Annotated[list[Label], _A_ROW_EACH]
    requests: Annotated[list[Request], _A_ROW_EACH]
    rules: Annotated[list[Rules], _A_ROW_EACH]
    symbol_of: bytes  # H
    label_of: bytes  # H
    request_of: bytes  # H
    rules_of: bytes  # H; empty where no row has any
    flags: bytes  # B
    levels: bytes  # I
    consumers: bytes  # I
    input_ends: bytes  # I, cumulative
    inputs: bytes  # Q, positional
    config_ends: bytes  # I, cumulative
    configs: bytes
    checkpoint_rows: bytes  # I, rising
    checkpoint_paths: Annotated[list[Path], _A_ROW_EACH]  # of those rows
    more: bool  # chunks of the same plan follow


# Tasks that the server puts in a plan itself. Their types stand in `tasktypes`, as all others do.
GET: Final = "loom/base/get"
SLICE: Final = "loom/base/slice"
SAME: Final = "loom/base/same"
ARRAY_MAKE: Final = "loom/array/make"
DGET: Final = "loom/scheduler/dget"
DSLICE: Final = "loom/scheduler/dslice"

RUN: Final = "loom/run/run"  # a program: unlike other light tasks, many run at a time


class GetConfig(Struct, array_like=True, frozen=True):
    index: int


class SliceConfig(Struct, array_like=True, frozen=True):
    start: int
    end: int


# -- Client to server -------------------------------------------------------------------------------------------------


class OpenSession(Message, tag=1):
    """First message of a client. `token` is the session's secret, needed to resume it.

    `name`: of a session that outlives its client; one that is there already is taken up, where no other client uses
    it or with `take_over`. `who` says for people which process this is.
    """

    token: Token
    credit_bytes: Count
    name: SessionName
    who: PeerText
    take_over: bool


class ResumeSession(Message, tag=2):
    """Take an established session up again after its link broke. Commands up to `acked_seq` were acknowledged."""

    session: Id
    token: Token
    credit_bytes: Count
    acked_seq: Id


class SubmitChunk(Message, tag=3):
    """`names`: numbers of results of this chunk, and under which names the session has them."""

    seq: Id
    chunk: PlanChunk
    names: Annotated[list[tuple[Id, ResultName]], _A_ROW_EACH]


class Release(Message, tag=4):
    """Give results up (`numbers`: Q column) and grant the credit that their inline copies used."""

    seq: Id
    numbers: bytes
    credit_bytes: Count


class CloseSession(Message, tag=5):
    """End the session, and all that is in it."""

    seq: Id


class Terminate(Message, tag=6):
    """Stop the server and all its workers."""

    seq: Id


class GetStats(Message, tag=7):
    seq: Id


class LocateResult(Message, tag=8):
    """The holder the client knew did not answer: bring the object back or say where it is now."""

    seq: Id
    number: Id


class RelayFetch(Message, tag=9):
    """The client cannot reach the worker: send the object through the server."""

    seq: Id
    number: Id


class SetTrace(Message, tag=10):
    """Server and workers write traces below a directory, until the session ends (`path`: bytes, absolute)."""

    seq: Id
    path: bytes


CANCELLED_TEXT: Final = "cancelled"  # what a cancelled result, and whoever takes it from then on, fails with


class CancelResults(Message, tag=11):
    """These results count as failed from now on (`numbers`: Q column); they are still to be released."""

    seq: Id
    numbers: bytes


class LeaveSession(Message, tag=12):
    """The client goes, its named session stays, with what has a name in it."""

    seq: Id


class ListSessions(Message, tag=13):
    """Answered by Sessions. `end` names a session to end before that; empty: none."""

    seq: Id
    end: SessionName


class AskLoad(Message, tag=14):
    """What waits, and what the workers have: answered by Load. This and the two that follow need no session."""

    seq: Id


class RetireWorkers(Message, tag=15):
    """Workers of these names are to hand over what they have, and to go. Answered by Retired."""

    seq: Id
    names: Annotated[list[PeerText], Meta(max_length=MAX_RETIRED)]


class AskAllocations(Message, tag=16):
    """For who looks after the server's allocation queues (deploy.batch): answered by Allocations."""

    seq: Id
    question: Annotated[bytes, Meta(max_length=MAX_QUESTION_BYTES)]


ClientToServer = (
    OpenSession
    | ResumeSession
    | SubmitChunk
    | Release
    | CloseSession
    | Terminate
    | GetStats
    | LocateResult
    | RelayFetch
    | SetTrace
    | CancelResults
    | LeaveSession
    | ListSessions
    | AskLoad
    | RetireWorkers
    | AskAllocations
)


# -- Server to client -------------------------------------------------------------------------------------------------


class SessionOpened(Message, tag=32):
    """`patience_s`: how long it is worth trying to come back when the link breaks. `ticket`: for data links (OpenData).

    For whoever takes up a named session: the commands applied in it, the first number that is free, the results that
    have names.
    """

    session: Id
    incarnation: Id
    patience_s: Count
    applied_seq: Id
    next_number: Id
    names: list[tuple[Id, str]]
    ticket: bytes


class SessionRefused(Message, tag=33):
    reason: str


class Acked(Message, tag=34):
    """Every command up to `seq` has been applied, and is in the journal where there is one."""

    seq: Id


class ReadyResult(Message):
    """`packed` is the whole object where it is small and the client's credit allows; `worker` holds it else."""

    number: Id
    size_bytes: Count
    worker: Id
    packed: bytes | None


class PeerAddress(Message):
    """Where a worker's objects can be fetched. `handover` names its unix socket (reachable on its own host only)."""

    worker: Id
    name: str
    host: str
    port: Count
    handover: str


class ResultsReady(Message, tag=35):
    """`peers` introduces holders not named on this link before."""

    results: list[ReadyResult]
    peers: list[PeerAddress]


class FailedResult(Message):
    """`task` is the task whose failure this is (the result's own or one it depends on)."""

    number: Id
    task: Id
    worker: str
    error: str


class ResultsFailed(Message, tag=36):
    results: list[FailedResult]


class Stats(Message, tag=37):
    seq: Id
    values: dict[str, int]


class RelayedObject(Message, tag=38):
    """A piece of a relayed object; the last one says so. `error` where it could not be had.

    `number` is a number of the client's session; to a worker it is the object's id.
    """

    number: Id
    header: bytes
    piece: bytes
    last: bool
    error: str


class SessionInfo(Message):
    """`who` uses it now; empty: nobody."""

    session: Id
    name: str
    who: str
    n_tasks: Count
    n_unfinished: Count
    names: list[str]


class Sessions(Message, tag=39):
    """The sessions that have names. `ended`: the one that was to be ended was there."""

    seq: Id
    sessions: list[SessionInfo]
    ended: bool


class JournalStalled(Message, tag=40):
    """Nothing is acknowledged, for this reason; empty: it is again."""

    reason: str


class Waiting(Message):
    """Tasks that are ready and that no worker has yet: how many, how many of them take nobody knows how long, and what
    the others take together. `needs_ms`: how long a worker has to be there for the shortest of them, as far as known.
    """

    request: Request
    count: Count
    n_unknown: Count
    work_ms: Count
    needs_ms: Count


class WorkerLoad(Message):
    """`n_tasks`: those it has now; `n_given`: all that it ever got. `time_left_ms`: 0 where nobody knows."""

    name: str
    cpus: Count
    n_tasks: Count
    n_given: Count
    leaving: bool
    time_left_ms: Count


class Load(Message, tag=41):
    """`n_objects`: those that somebody may still ask for."""

    seq: Id
    waiting: list[Waiting]
    workers: list[WorkerLoad]
    n_objects: Count


class Retired(Message, tag=42):
    """The workers of these names have been told to go; others that were named are not there."""

    seq: Id
    names: list[str]


class Allocations(Message, tag=43):
    """`error`: why there is no answer; empty where there is one."""

    seq: Id
    answer: bytes
    error: str


ServerToClient = (
    SessionOpened
    | SessionRefused
    | Acked
    | ResultsReady
    | ResultsFailed
    | Stats
    | RelayedObject
    | Sessions
    | JournalStalled
    | Load
    | Retired
    | Allocations
)


# -- Worker to server -------------------------------------------------------------------------------------------------


class RegisterWorker(Message, tag=64):
    """`name` is for people (host:pid). `extras`: what there is besides cores, in the units of `Request.extras`.

    `time_left_ms`: until the worker has to leave, 0 where nobody knows. `before`: the server, its incarnation, and the
    worker that this process was on its last link; 0, 0, 0 where there was none.
    """

    name: PeerText
    cpus: Annotated[int, Meta(ge=1, le=MAX_CPUS)]
    extras: Annotated[list[tuple[Label, Count]], Meta(max_length=MAX_EXTRAS)]
    host: PeerText
    port: Annotated[int, Meta(ge=0, le=65535)]
    handover: PeerText
    symbols: Annotated[list[Symbol], Meta(max_length=MAX_KINDS)]
    time_left_ms: Count
    before: tuple[Id, Id, Id]


class FinishedTask(Message):
    """`packed` only for a small object of a task flagged RESULT."""

    task: Id
    attempt: Id
    size_bytes: Count
    length: Count
    duration_us: Count
    packed: bytes | None


class TasksFinished(Message, tag=65):
    tasks: list[FinishedTask]


class FailedTask(Message):
    task: Id
    attempt: Id
    error: str


class TasksFailed(Message, tag=66):
    tasks: list[FailedTask]


class TaskRedirected(Message, tag=67):
    """The task's result is that of the last row of `chunk`.

    Rows are numbered from `chunk.first` = SERVER_MADE on; the server gives them numbers of its own. Inputs below
    SERVER_MADE are positions among the redirecting task's own inputs.
    """

    task: Id
    attempt: Id
    chunk: PlanChunk


class ObjectsHeld(Message, tag=68):
    """Replicas that arrived from other workers (`objects`: Q column)."""

    objects: bytes


class TasksGivenBack(Message, tag=69):
    """Not started here and no longer this worker's (Q columns). `answer`: this answers a GiveBack.

    Unasked it says that an input was not there and could not be had.
    """

    tasks: bytes
    attempts: bytes
    answer: bool


class RelayPiece(Message, tag=70):
    """An object on its way through the server to a client; the last piece says so."""

    object: Id
    header: bytes
    piece: bytes
    last: bool
    error: str


class CheckpointWritten(Message, tag=71):
    """The answer to WriteCheckpoint; `error` is empty where the file is in place."""

    object: Id
    error: str


class WorkerLeaves(Message, tag=72):
    """The worker starts nothing any more: what it has not started comes back, and it goes when the server lets it."""


class WorkerCondition(Message, tag=73):
    """`over_budget`: its objects take more memory than they may. `disk_full`: it cannot store what it makes."""

    over_budget: bool
    disk_full: bool


class NotTaken(Message, tag=75):
    """Objects of a leaving worker that could not be brought here (`objects`: Q column)."""

    objects: bytes


class RelayWanted(Message, tag=74):
    """No holder of these objects can be reached from here (`objects`: Q column): send them through the server."""

    objects: bytes


class WorkerInventory(Message, tag=76):
    """What a worker that has come back holds, and the tasks it has, in an order in which inputs come first.

    Q columns: ids of objects, the attempts that made them, sizes, lengths; ids of tasks, attempts. The last one of
    several says so.
    """

    objects: bytes
    object_attempts: bytes
    sizes: bytes
    lengths: bytes
    tasks: bytes
    task_attempts: bytes
    last: bool


WorkerToServer = (
    RegisterWorker
    | TasksFinished
    | TasksFailed
    | TaskRedirected
    | ObjectsHeld
    | TasksGivenBack
    | RelayPiece
    | CheckpointWritten
    | WorkerLeaves
    | WorkerCondition
    | RelayWanted
    | NotTaken
    | WorkerInventory
)


# -- Server to worker -------------------------------------------------------------------------------------------------


class WorkerAccepted(Message, tag=96):
    """`silence_ms`: an end of the link from which nothing has come for so long is taken for dead.

    `keeps`: what the worker has from before may still be good, it is to say what that is (WorkerInventory). Else all of
    it is void. `patience_s`: how long it is worth keeping all when the link breaks.
    """

    worker: Id
    server: Id
    incarnation: Id
    silence_ms: Count
    keeps: bool
    patience_s: Count


class TaskKind(Message):
    """Tasks of one symbol, label prefix and request, whose durations are alike: announced once a link."""

    kind: Id
    symbol: Symbol
    label: Label
    request: Request


class RunTask(Message):
    """`inputs` are positional object ids; `consumers` is how many tasks will take the object, wherever they run.

    `time_limit_ms`: how long it may run; 0: as long as it likes.
    """

    task: Id
    attempt: Id
    kind: Id
    flags: Count
    time_limit_ms: Count
    consumers: Count
    config: bytes
    inputs: list[Id]


class ObjectAt(Message):
    """An input that the worker lacks, with workers that hold it, and the attempt that made it."""

    object: Id
    attempt: Id
    size_bytes: Count
    length: Count
    workers: list[Id]


class RunTasks(Message, tag=97):
    """Assignments, in an order in which inputs made by this worker come before their consumers."""

    kinds: list[TaskKind]
    peers: list[PeerAddress]
    objects: list[ObjectAt]
    tasks: list[RunTask]


class CancelTasks(Message, tag=98):
    """Stop and forget (Q column)."""

    tasks: bytes


class RecallTasks(Message, tag=99):
    """Give these back unless they have started (Q column)."""

    tasks: bytes


class GiveBack(Message, tag=100):
    """Give back up to `count` tasks that have not started, those that would start last first."""

    count: Count


class DropObjects(Message, tag=101):
    objects: bytes


class ForgetSession(Message, tag=102):
    """Everything of the session is void: stop its tasks, drop its objects."""

    session: Id


class RelayObject(Message, tag=103):
    """Send this object to the server: up to so many RelayPiece messages that are not the last, then wait.

    `go_on`: so many more of one that is under way. It may have crossed the last piece, then it says nothing.
    """

    object: Id
    pieces: Count
    go_on: bool


class StopWorker(Message, tag=104):
    pass


class WriteCheckpoint(Message, tag=105):
    """Write an object that is held here to a file; `path` is the bytes of an absolute path."""

    object: Id
    path: bytes


class WriteTrace(Message, tag=106):
    """From now on write a trace below the directory `path`; none where that is empty."""

    path: bytes


class TakeObjects(Message, tag=107):
    """Fetch and hold these objects: the worker that has them leaves."""

    peers: list[PeerAddress]
    objects: list[ObjectAt]


class LeaveWorker(Message, tag=108):
    """Hand over what is here, and go: answered by WorkerLeaves."""


ServerToWorker = (
    WorkerAccepted
    | RunTasks
    | CancelTasks
    | RecallTasks
    | GiveBack
    | DropObjects
    | ForgetSession
    | RelayObject
    | StopWorker
    | WriteCheckpoint
    | WriteTrace
    | RelayedObject
    | TakeObjects
    | LeaveWorker
)


# -- Data links: a worker or client asks a worker for objects ---------------------------------------------------------


class OpenData(Message, tag=131):
    """The first of a data link: objects of this session are asked for over it; 0: a worker's, for any session.

    `ticket` proves that it may do so (see wire.tickets). `holder`: PeerAddress.handover of whom it is meant for, since
    an address can lead to somebody else: machines in different places may have the same one.
    """

    session: Id
    ticket: bytes
    holder: PeerText = ""


class FetchObjects(Message, tag=128):
    objects: list[Id]


class ObjectComes(Message, tag=129):
    """Followed by `size_bytes` of payload in bulk frames; over a handover socket, by `parts` instead.

    A part is (offset, length) into the descriptor at its place among those handed over.
    """

    object: Id
    header: bytes
    size_bytes: Count
    parts: list[tuple[int, int]]
    payload: bytes


class ObjectMissing(Message, tag=130):
    object: Id


DataRequest = OpenData | FetchObjects
DataReply = ObjectComes | ObjectMissing


# -- Worker and its executors -----------------------------------------------------------------------------------------


class ExecutorInput(Message):
    """An input that is not just given as its packed bytes.

    `packed`: a small object whole, to be kept. Else `header` and `parts`, (descriptor index, offset, length) into the
    descriptors that came with the message. `keep`: the executor keeps it by `object` (functions).
    """

    object: Id
    packed: bytes | None
    header: bytes
    parts: list[tuple[int, int, int]]
    keep: bool


class ExecutorTask(Message):
    """`serial` counts the tasks given to this executor: shared memory says which one is running.

    An input is a small object packed, an object's id where the executor keeps it, an ExecutorInput, or what another
    task makes that was given to it before: minus the serial of that. `function` is the object id of the first input, by
    which a live function is kept.
    """

    serial: Id
    number: Id
    attempt: Id
    symbol: Symbol
    config: bytes
    function: Id
    inputs: list[bytes | int | ExecutorInput]


class ExecutorBatch(Message, tag=160):
    tasks: list[ExecutorTask]


class ResultPart(Message):
    """Bytes of a result: of the executor's output file (`input` = -1) or of part `index` of input `input`."""

    input: int
    index: int
    offset: Count
    size_bytes: Count


class SmallResult(Message, tag=161):
    """`begun_us` is a time of the host's monotonic clock."""

    serial: Id
    begun_us: Count
    duration_us: Count
    size_bytes: Count
    length: Count
    packed: bytes


class LargeResult(Message, tag=163):
    """`parts` lie in `file` or in inputs."""

    serial: Id
    begun_us: Count
    duration_us: Count
    size_bytes: Count
    length: Count
    header: bytes
    file: str
    parts: list[ResultPart]


class ErrorResult(Message, tag=164):
    serial: Id
    begun_us: Count
    duration_us: Count
    error: str


class RedirectResult(Message, tag=165):
    """As in TaskRedirected."""

    serial: Id
    chunk: PlanChunk


class InputsMissing(Message, tag=166):
    """The task did not run: these objects are kept no longer, or another task has not made what this one takes."""

    serial: Id
    objects: list[Id]


ExecutorResult = SmallResult | LargeResult | ErrorResult | RedirectResult | InputsMissing


class ExecutorLog(Message, tag=162):
    """A line for the worker's log, from `ctx.log_*`. `level` as in the logging module."""

    number: Id
    level: int
    text: str


FromExecutor = ExecutorResult | ExecutorLog
