"""What the I/O thread knows of results, and how user threads wait for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from loom.data.buffers import Segment
from loom.errors import LoomError, LoomException, ObjectLost, TaskFailed
from loom.messages import CANCELLED_TEXT, FailedResult, ReadyResult

Payload: TypeAlias = bytes | tuple[bytes, list[Segment]]  # a packed object, or header and segments


class _Held:
    """Finished, the object is at a worker."""


_HELD: Final = _Held()

_Entry: TypeAlias = bytes | _Held | TaskFailed | None  # None: not finished


class Watcher:
    """Collects which of some results are over, in the order in which they become so."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.pending = set(numbers)
        self.over: deque[int] = deque()


class Ticket:
    """One fetch: payloads come in until none is missing."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.missing = set(numbers)
        self.payloads: dict[int, Payload] = {}
        self.error: LoomException | None = None


class _Waiting:
    """A thread that waits until all of some results are over; it is woken when `number`, one of them, is."""

    def __init__(self, numbers: Sequence[int], lock: threading.Lock) -> None:
        self.numbers = frozenset(numbers)
        self.number = -1
        self.released: int | None = None  # one of them was, before it was over
        self.wake = threading.Condition(lock)


class Results:
    """Shared by all threads of a client; every method takes its lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._entries: dict[int, _Entry] = {}
        self._n_failed = 0
        self._waiting: list[_Waiting] = []
        self._watchers: list[Watcher] = []
        self._tickets: list[Ticket] = []
        self._broken: LoomException | None = None

    # -- From the I/O thread ------------------------------------------------------------------------------------------

    def ready(self, results: Sequence[ReadyResult]) -> None:
        """One that has failed stays so: it was cancelled while the news was on its way."""
        with self._lock:
            entries = self._entries
            tickets = self._tickets
            for result in results:
                number, packed = result.number, result.packed
                if number in entries and not isinstance(entries[number], TaskFailed):
                    entries[number] = _HELD if packed is None else packed
                if tickets and packed is not None:  # computed again while it was being fetched
                    self._fill_tickets(number, packed)
            if self._watchers:
                self._tell_watchers([result.number for result in results])
            for waiting in self._waiting:
                if entries.get(waiting.number) is not None:
                    waiting.wake.notify()
            self._changed.notify_all()

    def failed(self, results: Sequence[FailedResult]) -> None:
        """The first failure of a result counts."""
        with self._lock:
            for result in results:
                number = result.number
                if number in self._entries and not isinstance(self._entries[number], TaskFailed):
                    self._fail(number, TaskFailed(result.task, result.worker, result.error))
            self._tell_watchers([result.number for result in results])
            self._changed.notify_all()

    def _fail(self, number: int, failure: TaskFailed) -> None:
        self._entries[number] = failure
        self._n_failed += 1
        for waiting in self._waiting:
            waiting.wake.notify()

    def _tell_watchers(self, numbers: list[int]) -> None:
        for watcher in self._watchers:
            for number in numbers:
                if number in watcher.pending:
                    watcher.pending.discard(number)
                    watcher.over.append(number)

    def delivered(self, number: int, payload: Payload) -> None:
        with self._lock:
            self._fill_tickets(number, payload)
            self._changed.notify_all()

    def _fill_tickets(self, number: int, payload: Payload) -> None:
        for ticket in self._tickets:
            if number in ticket.missing:
                ticket.missing.discard(number)
                ticket.payloads[number] = payload

    def undeliverable(self, number: int, reason: str) -> None:
        with self._lock:
            for ticket in self._tickets:
                if number in ticket.missing:
                    ticket.error = ObjectLost(f"the result of task {number} could not be brought here: {reason}")
            self._changed.notify_all()

    def broken(self, error: LoomException) -> None:
        """Nothing comes any more: everybody who waits is told."""
        with self._lock:
            self._broken = error
            for waiting in self._waiting:
                waiting.wake.notify()
            self._changed.notify_all()

    # -- From user threads --------------------------------------------------------------------------------------------

    def expect(self, numbers: Iterable[int]) -> None:
        with self._lock:
            self._entries.update(dict.fromkeys(numbers))

    def forget(self, numbers: Sequence[int]) -> None:
        """These were released: who waits for one in another thread is told, not left waiting."""
        with self._lock:
            unfinished = {number for number in numbers if self._entries.pop(number, _HELD) is None}
            for waiting in self._waiting:
                if released := unfinished & waiting.numbers:
                    waiting.released = min(released)
                    waiting.wake.notify()
            for watcher in self._watchers:
                watcher.pending.difference_update(numbers)
            for ticket in self._tickets:
                gone = ticket.missing.intersection(numbers)
                if gone:
                    ticket.error = _released_meanwhile(min(gone))
            self._changed.notify_all()

    def cancel(self, numbers: Sequence[int]) -> list[int]:
        """Those that were not over fail, before whatever is on its way is heard; returns them."""
        with self._lock:
            cancelled = []
            for number in numbers:
                if number in self._entries and self._entries[number] is None:
                    self._fail(number, TaskFailed(number, "", CANCELLED_TEXT))
                    cancelled.append(number)
            self._tell_watchers(cancelled)
            self._changed.notify_all()
            return cancelled

    def is_over(self, number: int) -> bool:
        return self._entries.get(number) is not None

    def failure(self, number: int) -> TaskFailed | None:
        entry = self._entries.get(number)
        return entry if isinstance(entry, TaskFailed) else None

    def wait(self, numbers: Sequence[int]) -> None:
        """Until all are finished; raises as soon as one has failed.

        What comes last is waited for first: as a rule it finishes last, and this thread is not woken for each.
        """
        with self._lock:
            failures_seen = -1
            left = len(numbers)
            waiting: _Waiting | None = None
            try:
                while True:
                    if self._n_failed != failures_seen:
                        failures_seen = self._n_failed
                        self._raise_failure(numbers)
                    while left and self._entry(numbers[left - 1]) is not None:
                        left -= 1
                    if not left:
                        return
                    if waiting is None:
                        waiting = _Waiting(numbers, self._lock)
                        self._waiting.append(waiting)
                    elif waiting.released is not None:
                        raise _released_meanwhile(waiting.released)
                    waiting.number = numbers[left - 1]
                    self._wait(waiting.wake)
            finally:
                if waiting is not None:
                    self._waiting.remove(waiting)

    def _raise_failure(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            entry = self._entries.get(number)
            if isinstance(entry, TaskFailed):
                raise _again(entry)

    def _entry(self, number: int) -> _Entry:
        try:
            return self._entries[number]
        except KeyError:
            raise _released_meanwhile(number) from None

    def check(self) -> None:
        """Raise why nothing comes any more, if that is so."""
        if self._broken is not None:
            raise self._broken.with_traceback(None)

    def _wait(self, changed: threading.Condition) -> None:
        self.check()
        changed.wait()

    def local(self, number: int) -> bytes | None:
        """The packed object where it came with the news; None where it has to be fetched."""
        entry = self._entries.get(number)
        return entry if isinstance(entry, bytes) else None

    def watch(self, numbers: Sequence[int]) -> Watcher:
        with self._lock:
            watcher = Watcher(numbers)
            for number in dict.fromkeys(numbers):
                if number not in self._entries:  # released
                    watcher.pending.discard(number)
                elif self._entries[number] is not None:
                    watcher.pending.discard(number)
                    watcher.over.append(number)
            self._watchers.append(watcher)
            return watcher

    def next_over(self, watcher: Watcher) -> int | None:
        """The next result that is over; None when all have been given that were not released before."""
        with self._lock:
            while not watcher.over:
                if not watcher.pending:
                    return None
                self._wait(self._changed)
            return watcher.over.popleft()

    def unwatch(self, watcher: Watcher) -> None:
        with self._lock:
            self._watchers.remove(watcher)

    def ticket(self, numbers: Iterable[int]) -> Ticket:
        with self._lock:
            ticket = Ticket(numbers)
            self._tickets.append(ticket)
            return ticket

    def redeem(self, ticket: Ticket) -> dict[int, Payload]:
        """Wait for everything on a ticket."""
        with self._lock:
            try:
                while ticket.missing:
                    if ticket.error is not None:
                        raise ticket.error
                    self._wait(self._changed)
            finally:
                self._tickets.remove(ticket)
            return ticket.payloads


def _released_meanwhile(number: int) -> LoomError:
    return LoomError(f"the result of task {number} was released by another thread while it was waited for")


def _again(failure: TaskFailed) -> TaskFailed:
    """A fresh exception: one that is raised twice would collect tracebacks."""
    return TaskFailed(failure.id, failure.worker, failure.error_msg)
