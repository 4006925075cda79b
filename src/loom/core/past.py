"""What the facts of a journal come to: a table of every session. Nothing here decides anything.

Facts about what is not there are passed over: a journal that was repaired has holes. A session of which a part of a
plan is missing cannot go on and is left out; `problems` says so.
"""

from __future__ import annotations

from typing import Final

from loom.core.columns import column
from loom.core.session import Failure
from loom.facts import (
    AllocationsKept,
    AnyFact,
    ObjectsSaved,
    PlanAbandoned,
    PlanAdded,
    ResultsCancelled,
    ResultsReleased,
    ServerStarted,
    SessionAt,
    SessionBegan,
    SessionEnded,
    SessionTaken,
    TaskBecame,
    TaskMarked,
    TasksFailed,
    TasksFinished,
    TasksMade,
    WorkerAttached,
    WorkerDetached,
)
from loom.ids import number_of, session_of

_MOST_PROBLEMS: Final = 100
_MOST_STARTS: Final = 64  # what workers have from before that is not taken any more


class PastSession:
    """By number of the task: `finished` (attempt, size), `failures`, ...; `seq`: of the last command applied.

    `starts`: the incarnation in which it began and those that came while it was there, and the number that was the
    next one when they began. An earlier one may have had another session of the same number.
    """

    def __init__(self, began: SessionBegan, incarnation: int) -> None:
        self.id = began.session
        self.token = began.token
        self.name = began.name
        self.who = began.who
        self.starts = began.starts or [(incarnation, 0)]
        self.seq = 0
        self.next_number = 0
        self.plan_first = 0  # of the plan that came last
        self.plan_open = False
        self.plans: list[PlanAdded] = []
        self.made: list[TasksMade] = []
        self.became: dict[int, TaskBecame] = {}
        self.flags: dict[int, int] = {}
        self.finished: dict[int, tuple[int, int]] = {}
        self.lengths: dict[int, int] = {}
        self.failures: dict[int, Failure] = {}
        self.saved: set[int] = set()
        self.released: set[int] = set()
        self.cancelled: set[int] = set()
        self.names: dict[str, int] = {}
        self._named: dict[int, str] = {}  # the same by number

    def give_name(self, number: int, name: str) -> None:
        before = self.names.get(name)
        if before is not None:
            self._named.pop(before, None)
        self.names[name] = number
        self._named[number] = name

    def release(self, numbers: bytes) -> None:
        gone = column(numbers, "Q").tolist()
        self.released.update(gone)
        self.cancelled.difference_update(gone)
        if self._named:
            for number in gone:
                name = self._named.pop(number, None)
                if name is not None:
                    self.names.pop(name, None)

    def cancel(self, numbers: bytes) -> None:
        self.cancelled.update([number for number in column(numbers, "Q") if number not in self.failures])

    def fail(self, fact: TasksFailed) -> None:
        failure = Failure(fact.task, fact.worker, fact.error)
        for number in column(fact.numbers, "Q"):
            self.failures[number] = failure
            self.finished.pop(number, None)

    def finish(self, number: int, attempt: int, size_bytes: int) -> None:
        self.finished[number] = attempt, size_bytes
        self.lengths.pop(number, None)
        self.saved.discard(number)


class Past:
    """`workers`: the names of those that were there at the end, or may still come back."""

    def __init__(self) -> None:
        self.server = 0
        self.incarnation = 0
        self.version = ""
        self.next_session = 1
        self.next_worker = 1
        self.sessions: dict[int, PastSession] = {}
        self.workers: dict[int, str] = {}
        self.allocations = b""
        self.problems: list[str] = []

    def apply(self, fact: AnyFact) -> None:
        """Facts come in the order in which they were written."""
        match fact:
            case TasksFinished():
                self._on_finished(fact)
            case ObjectsSaved():
                for task in column(fact.tasks, "Q"):
                    session = self.sessions.get(session_of(task))
                    if session is not None:
                        session.saved.add(number_of(task))
            case ServerStarted():
                if fact.server != self.server:  # workers that knew it under another name begin anew
                    self.workers.clear()
                self.server, self.incarnation, self.version = fact.server, fact.incarnation, fact.version
                self.next_session = max(self.next_session, fact.next_session)
                self.next_worker = max(self.next_worker, fact.next_worker)
                self._note_start()
            case WorkerAttached():
                self.workers[fact.worker] = fact.name
                self.next_worker = max(self.next_worker, fact.worker + 1)
            case WorkerDetached():
                self.workers.pop(fact.worker, None)
            case SessionBegan():
                self.sessions[fact.session] = PastSession(fact, self.incarnation)
                self.next_session = max(self.next_session, fact.session + 1)
            case SessionEnded():
                self.sessions.pop(fact.session, None)
            case AllocationsKept():
                self.allocations = fact.state
            case _:
                session = self.sessions.get(fact.session)
                if session is not None:
                    self._apply_to(session, fact)

    def _note_start(self) -> None:
        for session in self.sessions.values():
            session.starts = [*session.starts, (self.incarnation, session.next_number)][-_MOST_STARTS:]

    def _on_finished(self, fact: TasksFinished) -> None:
        tasks, attempts, sizes = column(fact.tasks, "Q"), column(fact.attempts, "Q"), column(fact.sizes, "Q")
        sessions = self.sessions
        for task, attempt, size_bytes in zip(tasks, attempts, sizes, strict=True):
            session = sessions.get(session_of(task))
            if session is not None:
                session.finish(number_of(task), attempt, size_bytes)
        for row, length in fact.lengths:
            session = sessions.get(session_of(tasks[row]))
            if session is not None:
                session.lengths[number_of(tasks[row])] = length

    def _apply_to(self, session: PastSession, fact: AnyFact) -> None:
        match fact:
            case PlanAdded():
                self._on_plan(session, fact)
            case ResultsReleased():
                session.seq = max(session.seq, fact.seq)
                session.release(fact.numbers)
            case ResultsCancelled():
                session.seq = max(session.seq, fact.seq)
                session.cancel(fact.numbers)
            case TasksFailed():
                session.fail(fact)
            case TasksMade():
                session.made.append(fact)
            case TaskBecame():
                session.became[fact.number] = fact
                session.flags[fact.number] = session.flags.get(fact.number, 0) | fact.flags
            case TaskMarked():
                session.flags[fact.number] = session.flags.get(fact.number, 0) | fact.flags
            case PlanAbandoned():
                session.plan_open = False
            case SessionTaken():
                session.token, session.who = fact.token, fact.who
            case SessionAt():
                session.seq = max(session.seq, fact.seq)
                session.next_number = fact.next_number
                session.plan_open = fact.plan_open

    def _on_plan(self, session: PastSession, fact: PlanAdded) -> None:
        session.seq = max(session.seq, fact.seq)
        chunk = fact.chunk
        if fact.stands_for is None:
            if chunk.first != session.next_number:
                if len(self.problems) < _MOST_PROBLEMS:
                    story = f"tasks {session.next_number} to {chunk.first} are missing"
                    self.problems.append(f"session {session.id} {session.name!r} is left out: {story}")
                del self.sessions[session.id]
                return
            session.next_number = chunk.first + len(chunk.flags)
            session.plan_first = chunk.plan_first
            session.plan_open = chunk.more
        session.plans.append(fact)
        for number, name in fact.names:
            session.give_name(number, name)
