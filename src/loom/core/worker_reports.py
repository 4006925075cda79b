"""What a worker has to tell its server, in causal order and in few frames.

A frame costs all ends together some 100 us: finishes that nobody else can go on with wait a little to share one.
"""

from __future__ import annotations

from typing import Final

from loom.core.columns import ids_column
from loom.core.worker_tasks import Task
from loom.messages import (
    FinishedTask,
    Message,
    ObjectsHeld,
    RelayPiece,
    TaskRedirected,
    TasksFailed,
    TasksFinished,
    TasksGivenBack,
)

_QUIET_S: Final = 0.002
_QUIET_TASKS: Final = 256


class WorkerReports:
    def __init__(self) -> None:
        self.given: list[Task] = []  # back to the server, which has not been told yet
        self.quiet_until: float | None = None  # when finishes that concern nobody else are reported
        self._finished: list[FinishedTask] = []
        self._arrived: list[int] = []
        self._urgent = False  # something that has finished concerns others
        self._messages: list[Message] = []
        self.failures: dict[int, tuple[int, Message]] = {}  # of tasks, for a server that comes back: attempt, message

    def add(self, message: Message) -> None:
        """Behind the finishes that came before it."""
        self._close_finished()
        self._messages.append(message)

    def finished(self, done: FinishedTask, can_wait: bool) -> None:
        self._finished.append(done)
        if not can_wait:
            self._urgent = True

    def arrived(self, object_id: int) -> None:
        """From another worker."""
        self._arrived.append(object_id)

    def missing(self, object_id: int) -> None:
        """An object is not here. This ends no relay: one under way has the bytes already."""
        self.add(RelayPiece(object_id, b"", b"", False, "the worker does not have the object"))

    def say_given(self, answer: bool) -> None:
        given, self.given = self.given, []
        ids = ids_column(t.id for t in given)
        self.add(TasksGivenBack(ids, ids_column(t.attempt for t in given), answer))

    def take(self, now: float) -> list[Message]:
        """What is to be said at the end of a turn."""
        if self._is_news(now):
            self._close_finished()
        if self.given:
            self.say_given(answer=False)
        messages, self._messages = self._messages, []
        return messages

    def unsaid(self) -> tuple[object, ...]:
        finished = self._finished if self.quiet_until is None else []
        return finished, self._messages, self.given, self._arrived

    def clear(self) -> None:
        """There is nobody any more to be told."""
        self.keep_failures()
        self.failures.clear()

    def keep_failures(self) -> None:
        """There is nobody to be told for now: keep what cannot be seen from what is here."""
        for message in self._messages:
            if isinstance(message, TasksFailed):
                for failed in message.tasks:
                    self.failures[failed.task] = failed.attempt, TasksFailed([failed])
            elif isinstance(message, TaskRedirected):
                self.failures[message.task] = message.attempt, message
        self._messages.clear()
        self.given.clear()
        self.quiet_until = None
        self._finished.clear()
        self._arrived.clear()
        self._urgent = False

    def take_failures(self) -> dict[int, tuple[int, Message]]:
        failures, self.failures = self.failures, {}
        return failures

    def _close_finished(self) -> None:
        if self._arrived:
            self._messages.append(ObjectsHeld(ids_column(self._arrived)))
            self._arrived = []
        if self._finished:
            self._messages.append(TasksFinished(self._finished))
            self._finished = []
            self._urgent = False
            self.quiet_until = None

    def _is_news(self, now: float) -> bool:
        """Whether to report what has finished now, or let it share a frame with what finishes next."""
        if self._urgent or self._arrived or not self._finished:
            return True
        if self.quiet_until is None:
            self.quiet_until = now + _QUIET_S
        return now >= self.quiet_until or len(self._finished) >= _QUIET_TASKS
