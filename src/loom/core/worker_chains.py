"""Tasks that take what an executor is about to make: they are sent after it, and the executor goes on by itself.

So a hop of a chain costs no message between worker and executor. A task may follow when every input that is not here is
being made by tasks that were queued at one executor before it. Where there are several cores, only a task that is
alone in waiting for its inputs follows: others would be held up behind it while cores are idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Set

from loom.core import worker_states as ws
from loom.core.worker_queues import Queues
from loom.core.worker_tasks import EXECUTOR, Executor, QueueEffect, RunOnExecutor, Task


class Chains:
    """`tasks`, `held`, `awaited` and `copies` are the core's own."""

    def __init__(
        self,
        queues: Queues,
        tasks: Mapping[int, Task],
        held: Mapping[int, int],
        awaited: Mapping[int, list[Task]],
        copies: Set[int],
    ) -> None:
        self._queues = queues
        self._tasks = tasks
        self._held = held
        self._awaited = awaited
        self._copies = copies
        self._next: list[deque[Task]] = [deque() for _ in queues.executors]  # may follow there when there is room

    def look_at(self, task: Task) -> None:
        """See whether a waiting task can follow what is queued; it does so in `follow`."""
        executor = self._executor_for(task)
        if executor is not None:
            self._next[executor.index].append(task)

    def follow(self, now: float, effects: list[QueueEffect]) -> None:
        """Queue what can follow; `effects`, which say what has just been queued, grow. O(queued)."""
        if not self._awaited:
            return
        batches: dict[int, list[Task]] = {}
        for effect in effects:
            if isinstance(effect, RunOnExecutor):
                batches[effect.executor] = effect.tasks
                for task in effect.tasks:
                    self._look_behind(task)
        for executor in self._queues.executors:
            line = self._next[executor.index]
            if not executor.queue:
                line.clear()
            while line and (line[0].state != ws.WAITING or self._queues.has_room(executor, line[0])):
                task = line.popleft()
                if self._executor_for(task) is executor:
                    self._queues.queue(task, executor, now, effects)
                    batch = batches.get(executor.index)
                    if batch is None:
                        batch = batches[executor.index] = []
                        effects.append(RunOnExecutor(executor.index, batch))
                    batch.append(task)
                    self._look_behind(task)

    def _look_behind(self, task: Task) -> None:
        for waiting in self._awaited.get(task.id, ()):
            self.look_at(waiting)

    def _executor_for(self, task: Task) -> Executor | None:
        """The executor that makes all that this task misses, if it may follow there."""
        if task.state != ws.WAITING or task.kind.place != EXECUTOR or task.kind.extras:
            return None
        found: Executor | None = None
        for object_id in task.inputs:
            if object_id in self._held:
                continue
            if object_id in self._copies:  # which would be found in the store, and taken for what is about to be made
                return None
            maker = self._tasks.get(object_id)
            executor = maker.executor if maker is not None else None
            if executor is None or (found is not None and executor is not found):
                return None
            if self._queues.cpus > 1 and len(self._awaited[object_id]) > 1:
                return None
            found = executor
        return found if found is not None and found.cpus == task.cpus <= 1 else None
