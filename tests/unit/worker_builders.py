"""A worker core whose every step is checked, and the kinds of tasks that tests give it."""

from __future__ import annotations

from typing import TypeVar

from core_builders import listed

from loom.core.check import check_worker
from loom.core.worker import WorkerCore
from loom.core.worker_events import Done, FromServer, RunInline, TasksDone, ToServer, WorkerEffect, WorkerEvent
from loom.core.worker_tasks import RunOnExecutor, RunProgram
from loom.messages import (
    Message,
    ObjectAt,
    PeerAddress,
    RunTask,
    RunTasks,
    TaskKind,
    TasksFinished,
    TasksGivenBack,
    WorkerAccepted,
)
from loom.resources import Request

E = TypeVar("E")
M = TypeVar("M", bound=Message)

PLACES = {"inline": "inline", "function": "executor", "program": "program", "loom/base/same": "inline"}
KINDS = [
    TaskKind(0, "inline", "", Request(0)),
    TaskKind(1, "function", "", Request(1)),
    TaskKind(2, "program", "", Request(1)),
    TaskKind(3, "program", "", Request(2)),
    TaskKind(4, "unknown", "", Request(1)),
    TaskKind(5, "loom/base/same", "", Request(0)),
    TaskKind(6, "function", "", Request(1, (("mem", 100 << 20),))),
]
INLINE, FUNCTION, PROGRAM, WIDE, UNKNOWN, SAME, SMALL = range(7)
PEERS = [PeerAddress(7, "w7", "h", 7, ""), PeerAddress(8, "w8", "h", 8, "")]
S = 1 << 40  # ids of session 1


def task(
    number: int, kind: int, *inputs: int, attempt: int = 1, consumers: int = 1, flags: int = 0, limit_ms: int = 0
) -> RunTask:
    return RunTask(S | number, attempt, kind, flags, limit_ms, consumers, b"", [S | i for i in inputs])


def ids(*task_numbers: int) -> list[int]:
    return [S | number for number in task_numbers]


def accepted(worker: int, keeps: bool = False, patience_s: int = 0) -> WorkerAccepted:
    return WorkerAccepted(worker, 77, 1, 30_000, keeps, patience_s)


def at(number: int, *workers: int, size_bytes: int = 10, attempt: int = 1, length: int = 0) -> ObjectAt:
    return ObjectAt(S | number, attempt, size_bytes, length, list(workers))


class Bench:
    """A worker core; every step is checked, and its effects are kept until asked for.

    `patience_s`: how long its server has it wait when the link is gone.
    """

    def __init__(self, cpus: int = 1, patience_s: int = 0) -> None:
        self.core = WorkerCore(cpus, PLACES, {"mem": 1 << 30})
        self.now = 50.0
        self.effects: list[WorkerEffect] = []
        self.say(accepted(1, patience_s=patience_s), RunTasks(KINDS, PEERS, [], []))

    def step(self, *events: WorkerEvent, after_s: float = 0.0) -> Bench:
        self.now += after_s
        self.effects = self.core.step(list(events), self.now)
        check_worker(self.core)
        return self

    def say(self, *messages: Message) -> Bench:
        return self.step(FromServer(list(messages)))

    def run(self, *tasks: RunTask, at: tuple[ObjectAt, ...] = ()) -> Bench:
        return self.say(RunTasks([], [], list(at), list(tasks)))

    def done(self, *task_numbers: int, size_bytes: int = 10, attempt: int = 1, duration_us: int = 5) -> Bench:
        done = [Done(S | n, attempt, size_bytes, 0, duration_us, None) for n in task_numbers]
        return self.step(TasksDone(done))

    def all(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def one(self, kind: type[E]) -> E:
        (effect,) = self.all(kind)
        return effect

    def told(self, kind: type[M]) -> list[M]:
        return [m for effect in self.all(ToServer) for m in effect.messages if isinstance(m, kind)]

    def finished(self) -> list[int]:
        return [t.task for m in self.told(TasksFinished) for t in m.tasks]

    def given(self) -> list[int]:
        return [t for m in self.told(TasksGivenBack) for t in listed(m.tasks)]

    def started(self) -> list[int]:
        inline = [t.id for effect in self.all(RunInline) for t in effect.tasks]
        queued = [t.id for effect in self.all(RunOnExecutor) for t in effect.tasks]
        return inline + queued + [effect.task.id for effect in self.all(RunProgram)]
