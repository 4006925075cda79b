"""A server core and peers that say whatever the input decides: what they should, something like it, or anything."""

from typing import Any, get_args

import msgspec

from fuzz.choices import Choices
from fuzz.plans import SYMBOLS, Plans, column
from fuzz.values import Hint, Values
from loom.core.check import check_server
from loom.core.compact import compacted
from loom.core.events import (
    CloseLink,
    LinkDown,
    LinkDrained,
    LinkFull,
    LinkUp,
    Received,
    Record,
    Send,
    ServerEvent,
    Shutdown,
)
from loom.core.past import Past
from loom.core.server import ServerCore
from loom.core.session import Session
from loom.errors import ProtocolError
from loom.facts import AnyFact
from loom.ids import SERVER_MADE
from loom.messages import (
    RESULT,
    CancelTasks,
    ClientToServer,
    CloseSession,
    FailedTask,
    FinishedTask,
    LeaveSession,
    Message,
    OpenSession,
    PlanChunk,
    RecallTasks,
    RegisterWorker,
    ResumeSession,
    RunTask,
    RunTasks,
    SubmitChunk,
    TaskRedirected,
    TasksFinished,
    TasksGivenBack,
    Terminate,
    WorkerLeaves,
    WorkerToServer,
)
from loom.wire.codec import Decoder, encode_payload

_SERVER = 4711
_UNIONS: dict[str, Any] = {"client": ClientToServer, "worker": WorkerToServer}
_DECODERS = {role: Decoder(union) for role, union in _UNIONS.items()}
_TOKENS = (b"token", b"other")
_NAMES = ("", "", "night", "day")
_OFFERED = sorted({*SYMBOLS} - {"t/unknown"})
_EXTRAS: tuple[list[tuple[str, int]], ...] = ([], [], [("mem", 1000)], [("gpus", 20_000), ("mem", 150)])
_PAUSES_S = (0.0, 0.1, 1.0, 6.0, 31.0, 400.0)
_LAST_WORDS = (OpenSession, ResumeSession, CloseSession, LeaveSession, Terminate, RegisterWorker, WorkerLeaves)
_MOST_TASKS = 200  # what is remembered of those that a worker was given


class World:
    """`journal`: it writes one, and starts again from it now and then. `strange`: peers say what they should not.

    After each turn everything in the core is checked. Whatever it raises comes through.
    """

    def __init__(self, choices: Choices, journal: bool, strange: bool = True) -> None:
        self.choices = choices
        self.commits: list[list[AnyFact]] = []
        self._journal = journal
        self._strange = strange
        self._now = 100.0
        self._n_links = 0
        self._roles: dict[int, str] = {}
        self._given: dict[int, list[RunTask]] = {}  # to the worker of a link, and not taken back
        self._plans = Plans(choices)
        self._seen: list[int] = [0]  # ids of tasks that somebody was told of
        self._values = Values(choices, self._hints())
        self._link = 0  # that is about to speak
        self._stopped = False
        self._start([])

    def go_on(self, most: int) -> None:
        """So many turns, fewer where the input ends before."""
        for _ in range(most):
            if self._stopped or not self.choices.left:
                break
            self._turn()

    def end(self) -> None:
        """All links break, and sessions without a name end."""
        for link in list(self._roles):
            self._down(link)
        self._step([], after_s=400.0)
        self._step([], after_s=400.0)
        unnamed = [session for session in self.core.graph.sessions.values() if not session.name]
        assert not unnamed, f"these never end: {unnamed}"

    # -- Turns --------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        choices = self.choices
        match choices.below(16):
            case 0 | 1:
                self._up("client")
            case 2 | 3:
                self._up("worker")
            case 4:
                self._step([], after_s=choices.of(_PAUSES_S))
            case 5:
                kinds: tuple[type[LinkFull | LinkDrained | LinkDown], ...] = (LinkFull, LinkDrained, LinkDown)
                kind = choices.of(kinds)
                for link in self._some_link():
                    if kind is LinkDown:
                        self._down(link)
                    else:
                        self._step([kind(link)])
            case 6 if self._journal:
                self._restart()
            case _:
                for link in self._some_link():
                    self._speak(link)

    def _some_link(self) -> list[int]:
        """One or none."""
        return [self.choices.of(list(self._roles))] if self._roles else []

    def _up(self, role: str) -> None:
        self._n_links += 1
        link = self._link = self._n_links
        self._roles[link] = role
        self._step([LinkUp(link, role)])
        if self._strange and self.choices.one_in(8):
            return
        first: Any = RegisterWorker
        if role == "client":
            first = self.choices.of((OpenSession, OpenSession, OpenSession, ResumeSession))
        self._say(link, [self._values.of(first)])

    def _down(self, link: int) -> None:
        if self._roles.pop(link, None) is not None:
            self._given.pop(link, None)
            self._step([LinkDown(link)])

    def _speak(self, link: int) -> None:
        self._link = link
        messages: list[Message] = []
        for _ in range(1 + self.choices.below(3)):
            message = self._client_says(link) if self._roles[link] == "client" else self._worker_says(link)
            if self._strange and self.choices.one_in(8):
                message = self._values.changed(message)
            messages.append(message)
        self._say(link, messages)

    def _client_says(self, link: int) -> Message:
        peer = self.core.peers.get(link)
        if isinstance(peer, Session) and self.choices.byte() & 1:
            chunk = self._plans.chunk(peer.next_number, peer)
            if self._strange and self.choices.one_in(8):
                chunk = self._values.changed(chunk)
            results = [chunk.first + row for row, flags in enumerate(chunk.flags) if flags & RESULT]
            names = [(results[-1], f"name {results[-1]}")] if results and self.choices.one_in(4) else []
            return SubmitChunk(peer.applied_seq + 1, chunk, names)
        return self._any(ClientToServer)

    def _worker_says(self, link: int) -> Message:
        choices, given = self.choices, self._given.get(link, [])
        if given and choices.below(3) < 2:
            task = given.pop(choices.below(min(len(given), 256)))
            size_bytes = choices.of((0, 1, 1000, 1 << 40))
            match choices.below(8):
                case 0:
                    plan = self._plans.chunk(SERVER_MADE, None, len(task.inputs))
                    if self._strange and choices.one_in(8):
                        plan = self._values.changed(plan)
                    return TaskRedirected(task.task, task.attempt, plan)
                case 1:
                    return TasksGivenBack(column([task.task]), column([task.attempt]), choices.one_in(2))
                case _:
                    packed = b"\0abc" if choices.one_in(2) else None
                    length = choices.below(4)
                    return TasksFinished([FinishedTask(task.task, task.attempt, size_bytes, length, 5, packed)])
        return self._any(WorkerToServer)

    def _any(self, union: Any) -> Message:
        """What ends a link, or all, comes less often than the rest."""
        kind = self.choices.of(get_args(union))
        if kind in _LAST_WORDS and not self.choices.one_in(4):
            kind = self.choices.of(get_args(union))
        message: Message = self._values.of(kind)
        return message

    def _say(self, link: int, messages: list[Message]) -> None:
        """Through the wire's format: what is no message never reaches the core."""
        role = self._roles[link]
        try:
            decoded = _DECODERS[role].decode(encode_payload(messages))
        except OverflowError:  # one more than the most that can be said
            return
        except ProtocolError:
            self._down(link)
            return
        self._step([Received(link, decoded)])

    # -- The server ---------------------------------------------------------------------------------------------------

    def _start(self, facts: list[AnyFact]) -> None:
        past = Past() if self._journal else None
        for fact in facts:
            assert past is not None
            past.apply(fact)
        assert past is None or not past.problems, past.problems
        incarnation = past.incarnation + 1 if past is not None else 1
        self.core = ServerCore(incarnation, server=_SERVER, past=past)
        self._step([])

    def _restart(self) -> None:
        """The server that starts from what is on disk; every link is gone. Now and then the journal is made short."""
        self._roles.clear()
        self._given.clear()
        facts = [fact for commit in self.commits for fact in commit]
        if self.choices.one_in(2):
            past = Past()
            for fact in facts:
                past.apply(fact)
            facts = _again(list(compacted(past)))
            self.commits = [facts]
        self._start(facts)

    def _step(self, events: list[ServerEvent], after_s: float = 0.0) -> None:
        self._now += after_s
        told: set[int] = set()
        for effect in self.core.step(events, self._now):
            match effect:
                case Send():
                    assert effect.link not in told, "two frames for one peer in one step"
                    told.add(effect.link)
                    self._told(effect.link, effect.messages)
                case CloseLink():
                    self._roles.pop(effect.link, None)
                    self._given.pop(effect.link, None)
                case Shutdown():
                    self._stopped = True
                case Record():
                    assert self._journal
                    self.commits.append(_again(effect.facts))
        check_server(self.core)

    def _told(self, link: int, messages: list[Message]) -> None:
        encode_payload(messages)  # whatever it has to say can be said
        for message in messages:
            if isinstance(message, RunTasks):
                given = self._given.setdefault(link, [])
                given += message.tasks
                del given[:-_MOST_TASKS]
                self._seen = [*self._seen, *(task.task for task in message.tasks)][-_MOST_TASKS:]
            elif isinstance(message, CancelTasks | RecallTasks) and not self._strange:
                gone = set(memoryview(message.tasks).cast("Q"))
                self._given[link] = [task for task in self._given.get(link, []) if task.task not in gone]

    # -- What is said -------------------------------------------------------------------------------------------------

    def _hints(self) -> dict[str, Hint]:
        choices = self.choices
        return {
            "token": lambda: choices.of(_TOKENS),
            "credit_bytes": lambda: choices.of((0, 1000, 1 << 30)),
            "name": lambda: choices.of(_NAMES),
            "who": lambda: choices.of(("me", "you")),
            "path": lambda: choices.of((b"/trace", b"", b"/other")),
            "RegisterWorker.name": lambda: choices.of(("host:1", "host:2")),
            "host": lambda: "host",
            "handover": lambda: "",
            "time_left_ms": lambda: choices.of((0, 0, 1000)),
            "end": lambda: choices.of(_NAMES),
            "session": lambda: 1 + choices.below(4),
            "seq": self._seq,
            "number": self._number,
            "numbers": lambda: column([self._number() for _ in range(choices.below(3))]),
            "chunk": self._some_chunk,
            "task": lambda: choices.of(self._seen),
            "tasks": self._tasks,
            "object": lambda: choices.of(self._seen),
            "objects": self._ids,
            "attempt": lambda: self.core.incarnation << 16 | choices.below(3),
            "attempts": self._attempts,
            "TasksFinished.tasks": lambda: [self._values.of(FinishedTask) for _ in range(choices.below(4))],
            "TasksFailed.tasks": lambda: [self._values.of(FailedTask) for _ in range(choices.below(4))],
            "cpus": lambda: choices.of((1, 2, 4, 1)),
            "extras": lambda: choices.of(_EXTRAS),
            "symbols": lambda: _OFFERED,
            "before": self._before,
            "size_bytes": lambda: choices.of((0, 1, 1000, 1 << 40)),
            "port": lambda: choices.below(65_536),
            "WorkerInventory.objects": lambda: column(self._seen[-3:]),
            "WorkerInventory.object_attempts": lambda: self._some_attempts(),
            "WorkerInventory.sizes": lambda: column([5] * len(self._seen[-3:])),
            "WorkerInventory.lengths": lambda: column([0] * len(self._seen[-3:])),
            "WorkerInventory.tasks": lambda: column(self._seen[:2]),
            "WorkerInventory.task_attempts": lambda: column([1 << 16 | 1] * len(self._seen[:2])),
        }

    def _seq(self) -> int:
        peer = self.core.peers.get(self._link)
        return peer.applied_seq + 1 if isinstance(peer, Session) else 1

    def _number(self) -> int:
        peer = self.core.peers.get(self._link)
        return self.choices.below(min(peer.next_number, 256)) if isinstance(peer, Session) else 0

    def _some_chunk(self) -> PlanChunk:
        peer = self.core.peers.get(self._link)
        if isinstance(peer, Session):
            return self._plans.chunk(peer.next_number, peer)
        return self._plans.chunk(SERVER_MADE, None)

    def _ids(self) -> bytes:
        return column([self.choices.of(self._seen) for _ in range(self.choices.below(3))])

    def _tasks(self) -> bytes:
        return column([self.choices.of(self._seen)])

    def _attempts(self) -> bytes:
        return column([self.core.incarnation << 16 | 1])

    def _some_attempts(self) -> bytes:
        return column([1 << 16 | 1] * len(self._seen[-3:]))

    def _before(self) -> tuple[int, int, int]:
        known = [worker.id for worker in self.core.workers.values()] or [1]
        before = self.choices.of(known) if self.choices.byte() & 1 else self.choices.below(6)
        return _SERVER, max(self.core.incarnation - self.choices.below(2), 0), before


def _again(facts: list[AnyFact]) -> list[AnyFact]:
    """As they come from a disk."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=list[AnyFact])
