"""Small worlds for tests of the cores: plans written as rows, and a server whose peers speak through links."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

from msgspec.msgpack import Decoder, encode

from loom.core.check import check_server
from loom.core.columns import column
from loom.core.compact import compacted
from loom.core.events import CloseLink, LinkDown, LinkUp, Received, Record, Send, ServerEvent, Settled, Shutdown
from loom.core.node import Node
from loom.core.past import Past
from loom.core.server import ServerCore
from loom.facts import AnyFact
from loom.ids import task_id
from loom.limits import REATTACH_S
from loom.messages import (
    RESULT,
    FinishedTask,
    Message,
    OpenSession,
    PlanChunk,
    RegisterWorker,
    Release,
    ResumeSession,
    Rules,
    RunTask,
    RunTasks,
    SessionOpened,
    SubmitChunk,
    TasksFinished,
    WorkerAccepted,
    WorkerInventory,
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
        self.facts: list[AnyFact] = []  # for the journal
        self.settled: list[Settled] = []

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
        self.journal: list[AnyFact] = []
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
                case Record():
                    said.facts += effect.facts
                    self.journal += effect.facts
                case Settled():
                    said.settled.append(effect)
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

    def resume(self, link: int, acked_seq: int = 0, session: int = 1, token: bytes = b"token") -> Said:
        """The next commands on this link follow `acked_seq`."""
        self._seqs[link] = acked_seq
        return self.step(LinkUp(link, "client"), Received(link, [ResumeSession(session, token, 1000, acked_seq)]))

    def open(self, link: int, name: str, take_over: bool = False) -> Said:
        """A client that opens a session of that name, or takes it up. It has a token of its own."""
        opening = OpenSession(b"token %d" % link, 1000, name, f"client {link}", take_over)
        said = self.step(LinkUp(link, "client"), Received(link, [opening]))
        for opened in said.all(link, SessionOpened):
            self._seqs[link] = opened.applied_seq
        return said

    def worker(
        self,
        link: int,
        cpus: int = 1,
        extras: Sequence[tuple[str, int]] = (),
        symbols: Sequence[str] = ("t/work",),
        before: tuple[int, int, int] = (0, 0, 0),
        name: str = "",
    ) -> Said:
        register = RegisterWorker(name or f"w{link}", cpus, list(extras), "host", link, "", list(symbols), 0, before)
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


SERVER = 4711  # what the journal is called


class JournalBench(Bench):
    """A server core with a journal, which goes on from `facts` where there are any."""

    def __init__(self, facts: Sequence[AnyFact] = (), reattach_s: float = REATTACH_S) -> None:
        super().__init__()
        past = fold(facts)
        self.journal = list(facts)
        self.core = ServerCore(past.incarnation + 1, server=SERVER, past=past, reattach_s=reattach_s)
        self.step()

    def restart(self, *, without: int = 0, compact: bool = False) -> JournalBench:
        """The server that starts from what is on disk: `without` the last facts."""
        facts = self.journal[: len(self.journal) - without]
        again = JournalBench(list(compacted(fold(facts))) if compact else facts)
        again.now = self.now
        return again

    def settle(self) -> Said:
        """Enough has been waited for workers."""
        return self.step(after_s=REATTACH_S)

    def come_back(
        self,
        link: int,
        before: int,
        objects: Sequence[FinishedTask] = (),
        tasks: Sequence[RunTask] = (),
        name: str = "",
    ) -> Said:
        """A worker that was number `before` of the server before this one. Returns what its inventory leads to."""
        past = (SERVER, self.core.incarnation - 1, before)
        assert self.worker(link, before=past, name=name).one(link, WorkerAccepted).keeps
        return self.say(link, inventory(objects, tasks))


_decode = Decoder(list[AnyFact]).decode


def fold(facts: Sequence[AnyFact]) -> Past:
    """What facts come to that have been on disk."""
    past = Past()
    for fact in _decode(encode(facts)):
        past.apply(fact)
    assert not past.problems
    return past


def made(task: RunTask, size_bytes: int = 10, length: int = 0) -> FinishedTask:
    return FinishedTask(task.task, task.attempt, size_bytes, length, 5, None)


def inventory(
    objects: Sequence[FinishedTask] = (), tasks: Sequence[RunTask] = (), last: bool = True
) -> WorkerInventory:
    return WorkerInventory(
        numbers(*(one.task for one in objects)),
        numbers(*(one.attempt for one in objects)),
        numbers(*(one.size_bytes for one in objects)),
        numbers(*(one.length for one in objects)),
        numbers(*(task.task for task in tasks)),
        numbers(*(task.attempt for task in tasks)),
        last,
    )


def finished(
    *tasks: RunTask, packed: bytes | None = None, size_bytes: int = 10, length: int = 0, us: int = 5
) -> TasksFinished:
    return TasksFinished([FinishedTask(t.task, t.attempt, size_bytes, length, us, packed) for t in tasks])


def ids(*task_numbers: int, session: int = 1) -> list[int]:
    return [task_id(session, number) for number in task_numbers]


def listed(data: bytes) -> list[int]:
    return column(data, "Q").tolist()
