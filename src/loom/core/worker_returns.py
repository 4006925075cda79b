"""What a worker gives back or has taken from it: tasks that others are to run, and objects that are not to be here.

A task that goes takes those with it that wait for its object here.
"""

from __future__ import annotations

from loom.core import worker_states as ws
from loom.core.columns import ids_column
from loom.core.worker_chains import Chains
from loom.core.worker_events import ReadBackDone, WorkerEffect
from loom.core.worker_fetches import Fetches
from loom.core.worker_objects import Objects
from loom.core.worker_queues import Queues
from loom.core.worker_reports import WorkerReports
from loom.core.worker_tasks import INLINE, ReadBack, StopProgram, Task
from loom.ids import session_of
from loom.messages import NotTaken


class Returns:
    """`tasks`, `awaited` and `effects` (of this turn) are the core's own."""

    def __init__(
        self,
        tasks: dict[int, Task],
        awaited: dict[int, list[Task]],
        objects: Objects,
        fetches: Fetches,
        queues: Queues,
        chains: Chains,
        reports: WorkerReports,
        effects: list[WorkerEffect],
    ) -> None:
        self._tasks = tasks
        self._awaited = awaited
        self._objects = objects
        self._fetches = fetches
        self._queues = queues
        self._chains = chains
        self._reports = reports
        self._effects = effects
        self.taking: set[int] = set()  # objects that a worker that leaves hands over, and that nobody here need want
        self.leaving = False
        self.now = 0.0

    # -- Tasks --------------------------------------------------------------------------------------------------------

    def give_back(self, task: Task) -> None:
        """Return a task that has not started, and those here that wait for it, be it at an executor."""
        stack = [task]
        while stack:
            task = stack.pop()
            if task.state == ws.QUEUED and task.n_missing:
                self._queues.cancelled(task, self.now)
            elif task.state not in (ws.WAITING, ws.READY):
                continue
            task.state = ws.OVER
            del self._tasks[task.id]
            self._objects.drop_copy(task.id)
            self._reports.given.append(task)
            stack += self._awaited.pop(task.id, ())

    def give_back_dependents(self, object_id: int) -> None:
        for waiting in self._awaited.pop(object_id, ()):
            self.give_back(waiting)

    def give_some_back(self, count: int) -> None:
        """Give back what would start last, but nothing that can start now: it would be handed round for ever."""
        self._effects += self._queues.start(self.now)
        if self._reports.given:
            self._reports.say_given(answer=False)
        for task in self._queues.last_ready(count):
            self.give_back(task)
        if self._reports.given:
            self._reports.say_given(answer=True)
            return
        longest = self._queues.longest_executor()
        if longest is None:
            self._reports.say_given(answer=True)
        else:
            self._queues.owed = min(count, longest.n_spare())
            self._effects.append(ReadBack(longest.index, self._queues.owed))

    def read_back(self, event: ReadBackDone) -> None:
        tasks = self._queues.take_back(event.runs)
        if self._queues.owed:
            self._queues.owed = 0
            for task in tasks:
                if task.state == ws.READY:  # others wait for what runs here
                    self.give_back(task)
            self._reports.say_given(answer=True)
        else:
            self.requeue(tasks)

    def requeue(self, tasks: list[Task]) -> None:
        """What comes back from an executor is ready again, unless an input has been lost since (it was recalled), or
        waits for those it was to follow.
        """
        ready = []
        for task in tasks:
            if self.leaving:
                self.give_back(task)
            elif task.state == ws.READY:
                if all(i in self._objects.held for i in task.inputs):
                    ready.append(task)
                else:
                    self.give_back(task)
            else:
                self._chains.look_at(task)
        self._queues.add_first(ready)

    def cancel(self, task: Task) -> None:
        state = task.state
        del self._tasks[task.id]
        task.state = ws.OVER
        self._objects.drop_copy(task.id)
        if state == ws.RUNNING and task.kind.place != INLINE:
            self._effects.append(StopProgram(task.id, task.attempt, "cancelled"))
        elif state == ws.QUEUED:
            self._queues.cancelled(task, self.now)
        self.give_back_dependents(task.id)

    def interrupted(self, task: Task) -> None:
        """Give back a task that is over, and not by its own doing."""
        self._objects.drop_copy(task.id)
        self._reports.given.append(task)
        self.give_back_dependents(task.id)

    def stop_all(self) -> None:
        """Give back what still runs, too: it is run again elsewhere."""
        for task in list(self._tasks.values()):
            if task.id in self._tasks:
                self.cancel(task)
                self._reports.given.append(task)

    # -- Objects ------------------------------------------------------------------------------------------------------

    def drop(self, object_id: int) -> None:
        self.taking.discard(object_id)
        if self._objects.release(object_id):
            self._objects.dropped.append(object_id)
        if self._fetches.forget(object_id):
            self._objects.dropped.append(object_id)
        if object_id not in self._tasks:
            self.give_back_dependents(object_id)

    def spoilt(self, object_id: int) -> None:
        """Give back what has not started and needs the object."""
        if object_id not in self._objects.held:
            return
        self.drop(object_id)
        self._reports.missing(object_id)
        for task in list(self._tasks.values()):
            if object_id in task.inputs:
                self.give_back(task)

    def unavailable(self, object_id: int) -> None:
        """An object does not come."""
        self.give_back_dependents(object_id)
        if object_id in self.taking:
            self.taking.remove(object_id)
            self._reports.add(NotTaken(ids_column([object_id])))

    # -- The ends of a session and of a link --------------------------------------------------------------------------

    def forget_session(self, session: int) -> None:
        for task in [t for t in self._tasks.values() if session_of(t.id) == session]:
            if task.id in self._tasks:
                self.cancel(task)
        self._reports.given = [t for t in self._reports.given if session_of(t.id) != session]
        fetching = self._fetches.under_way
        for object_id in [i for i in (*self._objects.held, *fetching) if session_of(i) == session]:
            self.drop(object_id)
        self._fetches.forget_session(session)

    def give_up_strays(self) -> None:
        """Keep only tasks that need nothing from elsewhere: every input is held, or made by a task that came before.

        Of what has started only tasks that were recalled can be affected: they have lost an input since.
        """
        for object_id in [i for i in self._awaited if i not in self._tasks]:
            self.give_back_dependents(object_id)
        kept: set[int] = set()
        for task in list(self._tasks.values()):
            if task.state == ws.OVER:
                pass  # with what it waited for
            elif all(i in self._objects.held or i in kept for i in task.inputs):
                kept.add(task.id)
            else:
                self.cancel(task)

    def give_all_up(self) -> None:
        while self._tasks:
            self.cancel(next(iter(self._tasks.values())))
        self._awaited.clear()
        self._objects.drop_all()
