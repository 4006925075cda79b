"""What hostile clients and workers say: any message that the codec lets through, most of them nearly right."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

from core_builders import SERVER, Row, chunk_of, numbers
from hypothesis import strategies as st
from msgspec.structs import replace

from loom.core import states
from loom.core.node import Node
from loom.core.server import ServerCore
from loom.core.session import Session
from loom.ids import NUMBER_MASK, SERVER_MADE, task_id
from loom.limits import INLINE_RESULT_BYTES, MAX_ERROR_CHARS, MAX_PATH_BYTES
from loom.messages import (
    ARRAY_MAKE,
    DGET,
    DSLICE,
    CancelResults,
    CheckpointWritten,
    CloseSession,
    FailedTask,
    FinishedTask,
    GetStats,
    LeaveSession,
    ListSessions,
    LocateResult,
    Message,
    NotTaken,
    ObjectsHeld,
    OpenSession,
    PlanChunk,
    RegisterWorker,
    RelayFetch,
    RelayPiece,
    RelayWanted,
    Release,
    ResumeSession,
    SetTrace,
    SubmitChunk,
    TaskRedirected,
    TasksFailed,
    TasksFinished,
    TasksGivenBack,
    WorkerCondition,
    WorkerInventory,
    WorkerLeaves,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]

NAMES = ("", "evil", "other", "x" * 200)
SYMBOLS = ("t/evil", "t/good", "t/nobody", "loom/base/const", ARRAY_MAKE, DGET, DSLICE, "loom/run/run")
_HUGE = 2**64 - 1


class Speaker:
    """Chooses what to say from what there is in the server. `spared`: a session that is not lied about: what a worker
    says it holds is believed. `relayed`: objects that some worker was told to send.
    """

    def __init__(self, core: ServerCore, draw: Draw, spared: int, relayed: Sequence[int]) -> None:
        self._relayed = relayed
        self._core = core
        self._draw = draw
        self._spared = spared

    def _one_of(self, *choices: Any) -> Any:
        return self._draw(st.sampled_from(choices))

    def _mostly(self, right: Any, *wrong: Any) -> Any:
        return right if self._one_of(*range(12)) else self._one_of(*wrong)

    # -- Clients ------------------------------------------------------------------------------------------------------

    def opens_well(self, role: str) -> Message:
        if role == "client":
            return OpenSession(b"a secret", 100, self._one_of("", "", *NAMES), "evil@host", self._one_of(False, True))
        incarnation = self._one_of(self._core.incarnation, self._core.incarnation - 1)
        before = (SERVER, incarnation, self._one_of(0, 1, 2, 3, *self._core.workers))
        return RegisterWorker("evil", self._one_of(1, 2), [("mem", 5)], "host", 1, "", ["t/evil"], 0, before)

    def first_of_client(self) -> Message:
        token = self._mostly(b"a secret", b"", b"t" * 65, b"guessed")
        credit = self._one_of(0, 100, _HUGE)
        if self._one_of(0, 0, 0, 1):
            session = self._one_of(0, 1, self._spared, self._spared + 1, _HUGE)
            return ResumeSession(session, token, credit, self._one_of(0, 1, _HUGE))
        who = self._mostly("evil@host", "", "w" * 5000, "two\nlines")
        return OpenSession(token, credit, self._one_of(*NAMES), who, self._one_of(False, True))

    def of_client(self, session: Session) -> Message:
        seq = self._mostly(session.applied_seq + 1, session.applied_seq, session.applied_seq + 2, 0, _HUGE)
        own = [node.number for node in session.nodes()]
        some = self._numbers([*own, *own, session.next_number, SERVER_MADE])
        number = self._one_of(*own, *own, 0, session.next_number, SERVER_MADE, _HUGE, self._foreign(session.id))
        message: Message = self._one_of(
            *[lambda: SubmitChunk(seq, *self._chunk(session))] * 6,
            *[lambda: Release(seq, some, self._one_of(0, 5, _HUGE))] * 2,
            *[lambda: CancelResults(seq, some)] * 2,
            lambda: LocateResult(seq, number),
            lambda: RelayFetch(seq, number),
            lambda: GetStats(seq),
            lambda: SetTrace(seq, self._one_of(b"/trace", b"", b"relative", b"/a\0b", b"/" * (MAX_PATH_BYTES + 1))),
            lambda: ListSessions(seq, self._one_of(*NAMES, "nobody")),
            lambda: LeaveSession(seq),
            lambda: CloseSession(seq),
            lambda: self.first_of_client(),
        )()
        return message

    def _foreign(self, session: int) -> int:
        """A number that would make the id of an object of the other session."""
        return task_id(session ^ self._spared, 0)

    def _numbers(self, values: Sequence[int]) -> bytes:
        chosen = self._draw(st.lists(st.sampled_from([*values, _HUGE, 7]), max_size=3))
        cut_short: bytes = self._mostly(b"", b"\0")
        return numbers(*chosen) + cut_short

    def _chunk(self, session: Session) -> tuple[PlanChunk, list[tuple[int, str]]]:
        first = session.next_number
        alive = [node.number for node in session.nodes() if node.flags & 1 or session.plan_open]
        whole = self._mostly(True, False)
        plan_first = session.plan_first if session.plan_open else first
        chunk = self._plan(first, alive, plan_first)
        chunk = replace(chunk, more=not whole)
        if not self._one_of(*range(4)):
            chunk = self._spoilt(chunk)
        results = [first + row for row, flags in enumerate(chunk.flags[:10]) if flags]
        name = self._one_of("a", "b", "c")
        named = [(self._mostly(number, number + 1), name) for number in results[-1:]]
        return chunk, self._one_of([], [], named, named * 2 if self._one_of(0, 1) else named)

    def _plan(self, first: int, alive: Sequence[int], plan_first: int) -> PlanChunk:
        rows = []
        count = self._draw(st.integers(1, 5))
        for row in range(count):
            there = [*alive, *range(first, first + row)]
            inputs = self._draw(st.lists(st.sampled_from(there), max_size=3)) if there else []
            result = row == count - 1 or self._one_of(False, True)
            symbol = self._one_of(*SYMBOLS)
            checkpoint = self._mostly(b"", b"/checkpoint", b"relative")
            retries = self._one_of(0, 0, 2)
            extras = self._mostly((), (("mem", 1),), (("mem", 1), ("mem", 1)))
            rows.append(
                Row(inputs, result, self._one_of(0, 1, 2), "", symbol, b"c", extras, checkpoint, retries, retries)
            )
        consumed = {i for row in rows for i in row.inputs}
        rows = [r._replace(result=r.result or first + i not in consumed) for i, r in enumerate(rows)]
        return chunk_of(rows, first, plan_first)

    def _spoilt(self, chunk: PlanChunk) -> PlanChunk:
        """With one thing that is wrong, or at least another."""
        name = self._one_of("consumers", "consumers", "flags", "inputs", "plan_first", *PlanChunk.__struct_fields__)
        value = getattr(chunk, name)
        if isinstance(value, bool):
            return replace(chunk, **{name: not value})
        if isinstance(value, int):
            return replace(chunk, **{name: self._one_of(value + 1, max(0, value - 1), _HUGE)})
        if isinstance(value, list):
            return replace(chunk, **{name: self._one_of([], value * 2, value[1:])})
        at = self._draw(st.integers(0, len(value)))
        width = {"inputs": 8, "consumers": 4, "input_ends": 4, "config_ends": 4, "flags": 1}.get(name, 2)
        if len(value) >= width and self._one_of(0, 1, 2):  # one number is one more, or one less
            at = at // width * width % len(value)
            number = max(0, int.from_bytes(value[at : at + width], "little") + self._one_of(1, -1))
            return replace(
                chunk, **{name: value[:at] + (number % 256**width).to_bytes(width, "little") + value[at + width :]}
            )
        other = bytes([self._draw(st.sampled_from((0, 1, 2, 255)))])
        changed = self._one_of(b"", value[:at], value + value, value[:at] + other + value[at + 1 :], value + b"\0")
        return replace(chunk, **{name: changed})

    # -- Workers ------------------------------------------------------------------------------------------------------

    def first_of_worker(self) -> Message:
        ids = list(self._core.workers)
        before = (SERVER, self._one_of(self._core.incarnation, self._core.incarnation - 1), self._one_of(0, 1, *ids))
        extras = self._mostly([("mem", 5)], [("mem", 1), ("mem", 2)], [("", 1)], [("mem", _HUGE)])
        symbols = self._mostly(["t/evil"], [], ["loom/run/run"] * 5000)
        return RegisterWorker(
            self._mostly("evil", "", "n" * 5000, "a\tb"),
            self._one_of(1, 2, 3),
            extras,
            self._mostly("host", "h" * 5000),
            self._mostly(1, 70_000),
            self._mostly("", "\0"),
            symbols,
            self._mostly(0, 1, _HUGE),
            self._mostly((0, 0, 0), before, before, (_HUGE, _HUGE, _HUGE)),
        )

    def of_worker(self, link: int) -> Message:
        tasks = self._tasks(link)
        ids = numbers(*(task for task, _ in tasks)) + self._mostly(b"", b"\0")
        attempts = numbers(*(attempt for _, attempt in tasks[: self._mostly(len(tasks), 0)]))
        task, attempt = tasks[0] if tasks else (0, 0)
        message: Message = self._one_of(
            *[lambda: TasksFinished([self._finished(*one) for one in tasks])] * 5,
            lambda: TasksFailed(
                [FailedTask(*one, self._one_of("", "no", "e" * (MAX_ERROR_CHARS + 1))) for one in tasks]
            ),
            *[lambda: TaskRedirected(task, attempt, self._redirection())] * 3,
            lambda: ObjectsHeld(ids),
            *[lambda: TasksGivenBack(ids, attempts, self._one_of(False, True))] * 2,
            lambda: RelayWanted(ids),
            lambda: NotTaken(ids),
            lambda: WorkerCondition(self._one_of(False, True), self._one_of(False, True)),
            lambda: WorkerLeaves(),
            *[lambda: self._inventory()] * (6 if self._core.peers[link].attaching else 1),  # type: ignore[union-attr]
            lambda: CheckpointWritten(task, self._one_of("", "no")),
            *[lambda: self._piece(task)] * 2,
            lambda: self.first_of_worker(),
        )()
        return message

    def _nodes(self) -> list[Node]:
        return [node for session in self._core.graph.sessions.values() for node in session.nodes()]

    def _tasks(self, link: int) -> list[tuple[int, int]]:
        """Ids and attempts: this worker's, others', such as there are not."""
        nodes = self._nodes()
        own = [node for node in nodes if node.worker is not None and node.worker.link == link]
        choices = [(node.id, node.attempt) for node in (*own, *own, *own, *nodes)]
        choices += [(node.id, node.attempt + 1) for node in own[:2]]
        choices += [(node.id, max(0, node.attempt - 1)) for node in nodes[:2]]
        choices += [(0, 0), (_HUGE, _HUGE), (task_id(self._spared, NUMBER_MASK), 1)]
        if own and self._one_of(0, 1):
            return [(node.id, node.attempt) for node in own[:3]]
        chosen: list[tuple[int, int]] = self._draw(st.lists(st.sampled_from(choices), max_size=4))
        return chosen

    def _finished(self, task: int, attempt: int) -> FinishedTask:
        packed = self._mostly(None, b"packed", b"p" * (INLINE_RESULT_BYTES + 1))
        return FinishedTask(
            task, attempt, self._one_of(0, 10, _HUGE), self._one_of(0, 1, 3, _HUGE), self._one_of(0, 5, _HUGE), packed
        )

    def _redirection(self) -> PlanChunk:
        rows = self._draw(st.integers(1, 3))
        plan = chunk_of(
            [Row([SERVER_MADE + r - 1] if r else self._one_of([], [0], [1])) for r in range(rows)], SERVER_MADE
        )
        return plan if self._one_of(0, 1, 2) else self._spoilt(plan)

    def _inventory(self) -> WorkerInventory:
        nodes = [node for node in self._nodes() if node.session.id != self._spared]
        some: list[Node] = self._draw(st.lists(st.sampled_from(nodes), max_size=3)) if nodes else []
        objects = [node.id for node in some if node.state == states.FINISHED]
        tasks = [node.id for node in some if node.state != states.FINISHED]
        tried = array("Q", [max(0, node.attempt + self._mostly(0, 1, -1)) for node in some]).tobytes()
        cut = self._mostly(0, 8)
        return WorkerInventory(
            numbers(*objects, *self._one_of([], [_HUGE])),
            tried[: 8 * len(objects)] + self._one_of(b"", b"\0" * 8),
            numbers(*[10 for _ in objects], *self._one_of([], [_HUGE])),
            numbers(*[2 for _ in objects], *self._one_of([], [_HUGE])),
            numbers(*tasks)[cut:],
            tried[8 * len(objects) :],
            self._one_of(False, True),
        )

    def _piece(self, task: int) -> RelayPiece:
        last = self._one_of(False, True)
        size = self._mostly(10, 0, (1 << 20) + 1)
        return RelayPiece(self._one_of(task, *self._relayed), b"h", b"p" * size, last, self._mostly("", "gone"))
