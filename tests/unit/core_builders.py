"""Small worlds for tests of the cores: plans written as rows, and a server whose peers speak through links."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

from loom.core.check import check_server
from loom.core.columns import column
from loom.core.events import CloseLink, LinkDown, LinkUp, Received, Send, ServerEvent, Shutdown
from loom.core.node import Node
from loom.core.server import ServerCore
from loom.ids import task_id
from loom.messages import (
    RESULT,
    FinishedTask,
    Message,
    OpenSession,
    PlanChunk,
    RegisterWorker,
    Release,
    Rules,
    RunTask,
    RunTasks,
    SubmitChunk,
    TasksFinished,
)
from loom.resources import Request

M = TypeVar("M", bound=Message)


class Row(NamedTuple):
    """One task of a plan; inputs are numbers of the session."""

    inputs: Sequence[int] = ()
    result: bool = False
    cpus: int = 1
    label: str = ""
    symbol: str = "t/work"
    config: bytes = b"c"
    extras: tuple[tuple[str, int], ...] = ()
    checkpoint: bytes = b""
    retries: int = 0
    priority: int = 0
    time_limit_ms: int = 0

    @property
    def rules(self) -> Rules:
        return Rules(self.retries, self.priority, self.time_limit_ms)


def chunk_of(
    rows: Sequence[Row],
    first: int = 0,
    plan_first: int | None = None,
    more: Mapping[int, int] | None = None,
    whole: bool = True,
) -> PlanChunk:
    """A chunk of a plan. `more`: consumers in later chunks, by number. `whole`: no chunk of the plan follows."""
    plan_first = first if plan_first is None else plan_first
    consumers = [(more or {}).get(first + i, 0) for i in range(len(rows))]
    levels = [0] * len(rows)
    for row in range(len(rows) - 1, -1, -1):
        for number in set(rows[row].inputs):
            if first <= number < first + len(rows):
                consumers[number - first] += 1
                levels[number - first] = max(levels[number - first], levels[row] + 1)
    symbols = list(dict.fromkeys(r.symbol for r in rows))
    labels = list(dict.fromkeys(r.label for r in rows))
    requests = list(dict.fromkeys(Request(r.cpus, r.extras) for r in rows))
    rules = list(dict.fromkeys(r.rules for r in rows)) if any(r.rules != Rules() for r in rows) else []
    saved = [row for row, r in enumerate(rows) if r.checkpoint]
    return PlanChunk(
        plan_first,
        first,
        symbols,
        labels,
        requests,
        rules,
        array("H", [symbols.index(r.symbol) for r in rows]).tobytes(),
        array("H", [labels.index(r.label) for r in rows]).tobytes(),
        array("H", [requests.index(Request(r.cpus, r.extras)) for r in rows]).tobytes(),
        array("H", [rules.index(r.rules) for r in rows] if rules else []).tobytes(),
        bytes(RESULT if r.result else 0 for r in rows),
        array("I", levels).tobytes(),
        array("I", consumers).tobytes(),
        array("I", accumulate(len(r.inputs) for r in rows)).tobytes(),
        array("Q", [i for r in rows for i in r.inputs]).tobytes(),
        array("I", accumulate(len(r.config) for r in rows)).tobytes(),
        b"".join(r.config for r in rows),
        array("I", saved).tobytes(),
        [rows[row].checkpoint for row in saved],
        whole is False,
    )


def numbers(*values: int) -> bytes:
    return array("Q", values).tobytes()


class Said:
    """What a step of the server said to whom."""

    def __init__(self) -> None:
        self.to: dict[int, list[Message]] = {}
        self.closed: dict[int, str] = {}
        self.shutdown = False

    def all(self, link: int, kind: type[M]) -> list[M]:
        return [m for m in self.to.get(link, []) if isinstance(m, kind)]

    def one(self, link: int, kind: type[M]) -> M:
        (message,) = self.all(link, kind)
        return message

    def tasks(self, link: int) -> list[RunTask]:
        return [task for batch in self.all(link, RunTasks) for task in batch.tasks]

    def numbers(self, link: int) -> list[int]:
        """Of the tasks assigned over this link, without their session."""
        return [task.task & 0xFFFF_FFFF for task in self.tasks(link)]


class Bench:
    """A server core; every step is checked. Links are given by whoever uses it."""

    def __init__(self) -> None:
        self.core = ServerCore(incarnation=1)
        self.now = 100.0
        self._seqs: dict[int, int] = {}

    def step(self, *events: ServerEvent, after_s: float = 0.0) -> Said:
        self.now += after_s
        said = Said()
        for effect in self.core.step(list(events), self.now):
            match effect:
                case Send():
                    assert effect.link not in said.to, "two frames for one peer in one step"
                    said.to[effect.link] = effect.messages
                case CloseLink():
                    said.closed[effect.link] = effect.reason
                case Shutdown():
                    said.shutdown = True
        check_server(self.core)
        return said

    def say(self, link: int, *messages: Message) -> Said:
        return self.step(Received(link, list(messages)))

    def down(self, link: int) -> Said:
        return self.step(LinkDown(link))

    # -- Peers --------------------------------------------------------------------------------------------------------

    def client(self, link: int, credit_bytes: int = 1000) -> Said:
        self._seqs[link] = 0
        return self.step(LinkUp(link, "client"), Received(link, [OpenSession(b"token", credit_bytes, "", "", False)]))

    def worker(
        self, link: int, cpus: int = 1, extras: Sequence[tuple[str, int]] = (), symbols: Sequence[str] = ("t/work",)
    ) -> Said:
        register = RegisterWorker(f"w{link}", cpus, list(extras), "host", link, "", list(symbols), 0, (0, 0, 0))
        return self.step(LinkUp(link, "worker"), Received(link, [register]))

    def seq(self, link: int) -> int:
        self._seqs[link] += 1
        return self._seqs[link]

    def submit(self, link: int, rows: Sequence[Row], first: int = 0, **kwargs: object) -> Said:
        return self.say(link, SubmitChunk(self.seq(link), chunk_of(rows, first, **kwargs), []))  # type: ignore[arg-type]

    def release(self, link: int, *given_up: int) -> Said:
        return self.say(link, Release(self.seq(link), numbers(*given_up), 0))

    def finish(
        self,
        link: int,
        *tasks: RunTask,
        packed: bytes | None = None,
        size_bytes: int = 10,
        length: int = 0,
        duration_us: int = 5,
    ) -> Said:
        return self.say(link, finished(*tasks, packed=packed, size_bytes=size_bytes, length=length, us=duration_us))

    def node(self, number: int, session: int = 1) -> Node:
        node = self.core.graph.sessions[session].find(number)
        assert node is not None
        return node

    def has(self, number: int, session: int = 1) -> bool:
        return self.core.graph.sessions[session].find(number) is not None


def finished(
    *tasks: RunTask, packed: bytes | None = None, size_bytes: int = 10, length: int = 0, us: int = 5
) -> TasksFinished:
    return TasksFinished([FinishedTask(t.task, t.attempt, size_bytes, length, us, packed) for t in tasks])


def ids(*task_numbers: int, session: int = 1) -> list[int]:
    return [task_id(session, number) for number in task_numbers]


def listed(data: bytes) -> list[int]:
    return column(data, "Q").tolist()
