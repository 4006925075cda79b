"""What the worker's shell tells its core, and what the core tells the shell to do."""

from msgspec import Struct

from loom.core.worker_tasks import (
    KillExecutor,
    ReadBack,
    RestartExecutor,
    Run,
    RunOnExecutor,
    RunProgram,
    StopProgram,
    Task,
)
from loom.messages import FinishedTask, Message, PeerAddress, PlanChunk


class FromServer(Struct, gc=False):
    messages: list[Message]


class ServerLost(Struct, gc=False):
    pass


Done = FinishedTask  # the object of a task is in the store


class TasksDone(Struct, gc=False):
    tasks: list[Done]


class Failed(Struct, gc=False):
    """`interrupted`: that is not the task's doing, and the worker leaves: it is given back."""

    task: int
    attempt: int
    error: str
    interrupted: bool = False


class Redirected(Struct, gc=False):
    task: int
    attempt: int
    chunk: PlanChunk


class Fetched(Struct, gc=False):
    object: int
    size_bytes: int


class FetchFailed(Struct, gc=False):
    """`unreachable`: its holder could not be connected, or fell silent."""

    object: int
    unreachable: bool


class Spoilt(Struct, gc=False):
    """An object in the store is not what it was (a program has changed its file). The core drops it."""

    object: int


class ReadBackDone(Struct, gc=False):
    """Runs that the executor had not claimed."""

    executor: int
    runs: list[Run]


class NotSent(Struct, gc=False):
    """The executor's queue had no room for these."""

    executor: int
    runs: list[Run]


class NotRun(Struct, gc=False):
    """These were to follow others of the executor, and what they take is not there."""

    executor: int
    runs: list[Run]


class ExecutorLost(Struct, gc=False):
    """`running` is what it died in, if anything; it takes tasks again after ExecutorReady."""

    executor: int
    running: Run | None
    story: str


class ExecutorReady(Struct, gc=False):
    executor: int


class CheckpointDone(Struct, gc=False):
    """`error` is empty where the file is in place."""

    object: int
    error: str


class NotInline(Struct, gc=False):
    """A task that was to run in the loop needs an executor (it opens an object of somebody's own type)."""

    task: int
    attempt: int


class Drain(Struct, gc=False):
    """The worker is to leave: what runs may go on until this time."""

    until: float


class Condition(Struct, gc=False):
    """How the store is: its objects take more memory than they may; there is no room on its disk."""

    over_budget: bool
    disk_full: bool


class OverMemory(Struct, gc=False):
    """A run takes more memory than it asked for."""

    task: int
    attempt: int
    peak_bytes: int


class StillRunning(Struct, gc=False):
    """What was to be ended after some time has not run that long: it may go on for `left_s`."""

    executor: int
    run: Run
    left_s: float


WorkerEvent = (
    FromServer
    | ServerLost
    | TasksDone
    | Failed
    | Redirected
    | Fetched
    | FetchFailed
    | Spoilt
    | ReadBackDone
    | NotSent
    | NotRun
    | ExecutorLost
    | ExecutorReady
    | CheckpointDone
    | NotInline
    | Drain
    | Condition
    | OverMemory
    | StillRunning
)


class ToServer(Struct, gc=False):
    messages: list[Message]


class Fetch(Struct, gc=False):
    peer: PeerAddress
    objects: list[int]


class Drop(Struct, gc=False):
    objects: list[int]


class RunInline(Struct, gc=False):
    """Run these in the loop now; answer with TasksDone, Failed."""

    tasks: list[Task]


class TakePiece(Struct, gc=False):
    """Part of an object that the server relays; with the last one it is whole: answer with Fetched or FetchFailed.

    `first`: what came of it before is void (that relay was broken off).
    """

    object: int
    header: bytes
    piece: bytes
    last: bool
    first: bool


class Relay(Struct, gc=False):
    """Send this object to the server: up to so many pieces that are not the last; `go_on`: so many more.

    One that is dropped meanwhile ends at once, with an error.
    """

    object: int
    pieces: int
    go_on: bool


class SaveObject(Struct, gc=False):
    """Write this object, which is in the store, to a file; answer with CheckpointDone."""

    object: int
    path: bytes


class StartTrace(Struct, gc=False):
    """Write a trace below this directory from now on; empty: no more."""

    path: bytes


class Stop(Struct, gc=False):
    """Leave."""


class Leave(Struct, gc=False):
    """Drain, and leave."""


class HangUp(Struct, gc=False):
    """Cut the link to the server, which has said what it must not say."""

    reason: str


WorkerEffect = (
    ToServer
    | Fetch
    | Drop
    | RunInline
    | RunOnExecutor
    | RunProgram
    | StopProgram
    | ReadBack
    | KillExecutor
    | RestartExecutor
    | Relay
    | TakePiece
    | SaveObject
    | StartTrace
    | Stop
    | Leave
    | HangUp
)
