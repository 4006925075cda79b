"""The objects of one worker: which of them count, and which have to go from its store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from loom.core.worker_tasks import Task


class Objects:
    """`tasks` are the core's own.

    While `identify` was last called with True it is also known which attempt made an object, and how long it is: a
    server that comes back has to be told. Without a journal nobody ever asks, and it would only take memory.
    """

    def __init__(self, tasks: Mapping[int, Task]) -> None:
        self._tasks = tasks
        self.held: dict[int, int] = {}  # object id -> size
        self.copies: set[int] = set()  # stored objects that count for nothing: their tasks are to run here once more
        self.dropped: list[int] = []  # since the last turn ended
        self.identified = False
        self.attempts: dict[int, object] = {}  # of held ones; as objects, so that equal numbers share one when compiled
        self.lengths: dict[int, int] = {}  # of held ones, where it is not 0
        self._known: dict[int, object] = {}  # attempts, each once

    def identify(self, wanted: bool) -> None:
        self.identified = wanted
        if not wanted:
            self.attempts.clear()
            self.lengths.clear()
            self._known.clear()

    def attempt(self, object_id: int) -> int:
        return cast(int, self.attempts[object_id])

    def hold(self, object_id: int, size_bytes: int, attempt: int, length: int) -> None:
        self.held[object_id] = size_bytes
        if self.identified:
            self.attempts[object_id] = self._known.setdefault(attempt, attempt)
            if length:
                self.lengths[object_id] = length

    def release(self, object_id: int) -> bool:
        """An object counts no more, and stays in the store; False where it did not count."""
        if self.held.pop(object_id, None) is None:
            return False
        if self.identified:
            self.attempts.pop(object_id, None)
            self.lengths.pop(object_id, None)
        return True

    def void(self, object_id: int) -> None:
        """The shell has stored something that is not to be held."""
        if object_id in self._tasks:
            self.copies.add(object_id)
        elif object_id not in self.held:
            self.dropped.append(object_id)

    def drop_copy(self, object_id: int) -> None:
        if object_id in self.copies:
            self.copies.remove(object_id)
            self.dropped.append(object_id)

    def drop_all(self) -> None:
        """For when there are no tasks any more, and so no copies."""
        self.dropped += self.held
        self.held.clear()
        self.attempts.clear()
        self.lengths.clear()
        self._known.clear()

    def take_dropped(self) -> list[int]:
        """What has to go from the store at the end of a turn."""
        gone = [i for i in self.dropped if i not in self.held]
        self.dropped.clear()
        return gone
