"""What a worker's core knows of kinds, tasks and executors, and what it asks of executors and programs."""

from __future__ import annotations

from itertools import islice
from typing import Final, NamedTuple

from msgspec import Struct

from loom.core import worker_states as ws
from loom.core.kinds import EXECUTOR_WINDOW_US, LEAST_TASK_US, Durations
from loom.messages import RunTask
from loom.resources import GPU_PARTS, GPUS, Request

INLINE: Final = "inline"
EXECUTOR: Final = "executor"
PROGRAM: Final = "program"
STUCK_S: Final = 0.001  # an executor without news for longer is in a long task

Run = tuple[int, int]  # task id and attempt


class Environment(NamedTuple):
    """Of an executor's process: what its libraries were loaded with."""

    threads: int = 1
    gpus: tuple[int, ...] = ()


class WorkerKind:
    """A kind of tasks as this worker sees it. `place` is "inline", "executor", "program", or "" for an unknown type."""

    __slots__ = (
        "_durations",
        "_estimate_us",
        "cpus",
        "environment",
        "extras",
        "label",
        "longest_us",
        "n_gpus",
        "number",
        "place",
        "request",
        "symbol",
    )

    def __init__(self, number: int, symbol: str, label: str, request: Request, place: str) -> None:
        self.number = number
        self.symbol = symbol
        self.label = label
        self.request = request
        self.cpus = request.cpus
        self.extras = request.extras
        self.n_gpus = sum(-(-amount // GPU_PARTS) for name, amount in request.extras if name == GPUS)
        self.place = place
        # what its functions find there, gpus aside; None: they take what they find
        self.environment = Environment(request.cpus) if request.cpus else None
        self.longest_us = 0  # ever seen
        self._durations = Durations()
        self._estimate_us: int | None = None

    def measured(self, duration_us: int) -> None:
        self._durations.add(duration_us)
        if duration_us > self.longest_us:
            self.longest_us = duration_us
        self._estimate_us = None

    @property
    def estimate_us(self) -> int:
        """What one more task counts in an executor's queue."""
        if self._estimate_us is None:
            self._estimate_us = self._durations.estimate_us(EXECUTOR_WINDOW_US, LEAST_TASK_US)
        return self._estimate_us


class Task:
    """A task that this worker owns."""

    __slots__ = (
        "attempt",
        "blocked_since",
        "config",
        "cores",
        "cpus",
        "estimate_us",
        "executor",
        "flags",
        "gpus",
        "id",
        "inputs",
        "kind",
        "n_consumers",
        "n_missing",
        "state",
        "time_limit_s",
    )

    def __init__(self, run: RunTask, kind: WorkerKind) -> None:
        self.id = run.task
        self.attempt = run.attempt
        self.kind = kind
        self.flags = run.flags
        self.time_limit_s = run.time_limit_ms / 1000 if run.time_limit_ms else None
        self.n_consumers = run.consumers
        self.config = run.config
        self.inputs = run.inputs
        self.n_missing = 0
        self.state = ws.WAITING
        self.executor: Executor | None = None
        self.cpus = kind.cpus
        self.cores: tuple[int, ...] = ()  # which of the worker's cores it has,
        self.gpus: tuple[int, ...] = ()  # and which of its gpus, while it is placed
        self.estimate_us = 0  # what it was counted as in its executor's queue
        self.blocked_since: float | None = None

    def __repr__(self) -> str:
        return f"<task {self.id:#x}/{self.attempt} {self.kind.symbol} state={self.state} missing={self.n_missing}>"


class RunOnExecutor(Struct, gc=False):
    """Queue these at the executor, in this order."""

    executor: int
    tasks: list[Task]


class RunProgram(Struct, gc=False):
    task: Task


class ReadBack(Struct, gc=False):
    """Take up to `count` tasks back that the executor has not claimed; answer with ReadBackDone at once."""

    executor: int
    count: int


class KillExecutor(Struct, gc=False):
    """End the process if it has been running this attempt for `after_s`; answer with ExecutorLost, its story `why`.

    Where it has run for less, answer with StillRunning; where it does not run it any more, with nothing.
    """

    executor: int
    run: Run
    after_s: float
    why: str


class StopProgram(Struct, gc=False):
    """End the run; when nothing of it is left, answer with Failed (or what came first), which frees its cores.

    `why` is the error.
    """

    task: int
    attempt: int
    why: str


class RestartExecutor(Struct, gc=False):
    """Give the executor, which has nothing to do, a new process with this environment."""

    executor: int
    threads: int
    gpus: tuple[int, ...]


QueueEffect = RunOnExecutor | RunProgram | ReadBack | KillExecutor | StopProgram | RestartExecutor


USUAL: Final = Environment()


class Executor:
    __slots__ = (
        "alive",
        "backlog_us",
        "cancelled_at",
        "cores",
        "cpus",
        "environment",
        "full",
        "index",
        "looked_at",
        "pause_s",
        "progress_at",
        "queue",
        "stop_at",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.alive = True
        self.full = False  # its socket took no more; cleared by the next result
        self.queue: dict[Task, None] = {}  # in the order sent; the first is running
        self.backlog_us = 0
        self.cpus = 0
        self.cores: tuple[int, ...] = ()
        self.environment = USUAL
        self.progress_at = 0.0
        self.looked_at = 0.0  # when its queue was last read back
        self.pause_s = STUCK_S  # until it is worth looking again
        self.cancelled_at: float | None = None
        self.stop_at: float | None = None  # when to see whether its task has run for too long

    def n_spare(self) -> int:
        """How many tasks wait behind the first and could start elsewhere: those that follow others cannot."""
        if len(self.queue) < 2:
            return 0
        return sum([not task.n_missing for task in islice(self.queue, 1, None)])
