"""The worker's brain: which task may run where and when, which objects to fetch, what to give back.

It knows ids and sizes, never bytes. The shell performs the effects in order and tells what came of them. The server
relies on this: a task is not started before all its inputs are held here, facts are reported in causal order, each
assignment that is not cancelled is answered once, what was given back does not run, and a cancelled task leaves no
object behind, even where it was finished before the cancellation came.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from loom.core import worker_states as ws
from loom.core.columns import column, ids_column
from loom.core.worker_events import (
    CheckpointDone,
    Done,
    Drop,
    ExecutorLost,
    ExecutorReady,
    Failed,
    Fetch,
    Fetched,
    FetchFailed,
    FromServer,
    NotInline,
    NotSent,
    ReadBackDone,
    Redirected,
    Relay,
    RunInline,
    SaveObject,
    ServerLost,
    Spoilt,
    StartTrace,
    Stop,
    StopProgram,
    TasksDone,
    ToServer,
    WorkerEffect,
    WorkerEvent,
)
from loom.core.worker_queues import Queues
from loom.core.worker_tasks import INLINE, ReadBack, Task, WorkerKind
from loom.errors import ProtocolError
from loom.ids import session_of
from loom.limits import INLINE_TASK_BYTES
from loom.messages import (
    RESULT,
    CancelTasks,
    CheckpointWritten,
    DropObjects,
    FailedTask,
    FinishedTask,
    ForgetSession,
    GiveBack,
    Message,
    ObjectAt,
    ObjectsHeld,
    PeerAddress,
    RecallTasks,
    RelayObject,
    RelayPiece,
    RunTask,
    RunTasks,
    StopWorker,
    TaskRedirected,
    TasksFailed,
    TasksFinished,
    TasksGivenBack,
    WorkerAccepted,
    WriteCheckpoint,
    WriteTrace,
)

_NO_EXTRAS: Final[Mapping[str, int]] = MappingProxyType({})
_NO_SUCH_TYPE: Final = "unknown task type {!r}: no worker has it (own types are loaded with --load)"
# A frame costs all ends together some 100 us: finishes that nobody can go on with share one.
_QUIET_S: Final = 0.002
_QUIET_TASKS: Final = 256


class _Fetching:
    """An object on its way here: `sources` are the holders not tried yet."""

    __slots__ = ("size_bytes", "sources")

    def __init__(self, size_bytes: int, sources: list[int]) -> None:
        self.size_bytes = size_bytes
        self.sources = sources


class WorkerCore:
    """`places` says for each task type where it runs: "inline", "executor" or "program".

    `extras`: what the worker has besides cores, in the units of `Request.extras`.
    """

    def __init__(self, cpus: int, places: Mapping[str, str], extras: Mapping[str, int] = _NO_EXTRAS) -> None:
        self._places = places
        self.queues = Queues(cpus, extras)
        self.tasks: dict[int, Task] = {}
        self.held: dict[int, int] = {}  # object id -> size
        self.fetching: dict[int, _Fetching] = {}
        self.awaited: dict[int, list[Task]] = {}  # object id -> tasks that wait for it
        self.copies: set[int] = set()  # stored objects that count for nothing: their tasks are to run here once more
        self.saving: set[int] = set()  # objects that are being written to their checkpoints
        self.peers: dict[int, PeerAddress] = {}
        self.id = 0
        self._kinds: dict[int, WorkerKind] = {}
        self._effects: list[WorkerEffect] = []
        self._inline: list[Task] = []
        self._finished: list[FinishedTask] = []
        self._reports: list[Message] = []
        self._given: list[Task] = []
        self._fetches: dict[int, list[int]] = {}
        self._arrived: list[int] = []
        self._dropped: list[int] = []
        self._urgent = False  # something that has finished concerns others
        self._quiet_until: float | None = None  # when finishes that concern nobody else are reported
        self._now = 0.0

    # -- The turn -----------------------------------------------------------------------------------------------------

    def step(self, events: list[WorkerEvent], now: float) -> list[WorkerEffect]:
        self._now = now
        for event in events:
            match event:
                case TasksDone():
                    for done in event.tasks:
                        self._on_done(done)
                case FromServer():
                    for message in event.messages:
                        self._on_server_message(message)
                case Fetched():
                    self._on_fetched(event.object, event.size_bytes)
                case FetchFailed():
                    self._on_fetch_failed(event.object)
                case Failed():
                    self._on_failed(event)
                case Redirected():
                    self._on_redirected(event)
                case ReadBackDone():
                    self._on_read_back(event)
                case NotSent():
                    self._requeue(self.queues.not_sent(event.executor, event.runs))
                case ExecutorLost():
                    self._on_executor_lost(event)
                case ExecutorReady():
                    self.queues.executors[event.executor].alive = True
                case Spoilt():
                    self._on_spoilt(event.object)
                case NotInline():
                    self._on_not_inline(event)
                case CheckpointDone():
                    self._on_checkpoint_done(event)
                case ServerLost():
                    self._on_server_lost()
        return self._flush()

    def next_deadline(self) -> float | None:
        deadline = self.queues.next_deadline()
        if self._quiet_until is None:
            return deadline
        return self._quiet_until if deadline is None else min(deadline, self._quiet_until)

    def expects(self, task: int, attempt: int) -> bool:
        """Whether a result of this attempt is still wanted; the shell keeps the object only then."""
        known = self.tasks.get(task)
        return known is not None and known.attempt == attempt

    def unsaid(self) -> tuple[object, ...]:
        """What waits to become an effect: empty between steps."""
        finished = self._finished if self._quiet_until is None else []
        told = (self._effects, self._inline, finished, self._reports, self._given)
        return (*told, self._fetches, self._arrived, self._dropped)

    def _flush(self) -> list[WorkerEffect]:
        effects, self._effects = self._effects, []
        if self._dropped:
            gone = [i for i in self._dropped if i not in self.held]
            if gone:
                effects.append(Drop(gone))
            self._dropped = []
        if self._is_news():
            self._report_finished()
        if self._given:
            self._report_given(answer=False)
        if self._reports:
            effects.append(ToServer(self._reports))
            self._reports = []
        for source, objects in self._fetches.items():
            effects.append(Fetch(self.peers[source], objects))
        self._fetches.clear()
        if self._inline:
            inline = [task for task in self._inline if task.state == ws.READY]  # still, at the end of the turn
            for task in inline:
                task.state = ws.RUNNING
            if inline:
                effects.append(RunInline(inline))
            self._inline = []
        effects += self.queues.start(self._now)
        return effects

    def _report(self, message: Message) -> None:
        """Queue a report behind the finishes that came before it: causal order."""
        self._report_finished()
        self._reports.append(message)

    def _report_finished(self) -> None:
        if self._arrived:
            self._reports.append(ObjectsHeld(ids_column(self._arrived)))
            self._arrived = []
        if self._finished:
            self._reports.append(TasksFinished(self._finished))
            self._finished = []
            self._urgent = False
            self._quiet_until = None

    def _is_news(self) -> bool:
        """Whether to report what has finished now, or let it share a frame with what finishes next."""
        if self._urgent or self._arrived or not self._finished:
            return True
        if self._quiet_until is None:
            self._quiet_until = self._now + _QUIET_S
        return self._now >= self._quiet_until or len(self._finished) >= _QUIET_TASKS

    def _report_given(self, answer: bool) -> None:
        given, self._given = self._given, []
        ids = ids_column(t.id for t in given)
        self._report(TasksGivenBack(ids, ids_column(t.attempt for t in given), answer))

    def _report_missing(self, object_id: int) -> None:
        """Tell the server that an object is not here. This ends no relay: one under way has the bytes already."""
        self._report(RelayPiece(object_id, b"", b"", False, "the worker does not have the object"))

    # -- What the server says -----------------------------------------------------------------------------------------

    def _on_server_message(self, message: Message) -> None:
        match message:
            case RunTasks():
                self._on_run_tasks(message)
            case DropObjects():
                for object_id in column(message.objects, "Q"):
                    self._drop(object_id)
            case CancelTasks():
                for task_id in column(message.tasks, "Q"):
                    task = self.tasks.get(task_id)
                    if task is not None:
                        self._cancel(task)
                    else:  # it had been finished before
                        self._drop(task_id)
            case RecallTasks():
                for task_id in column(message.tasks, "Q"):
                    task = self.tasks.get(task_id)
                    if task is not None and task.state in (ws.WAITING, ws.READY):
                        self._give_back(task)
            case GiveBack():
                self._on_give_back(message.count)
            case ForgetSession():
                self._on_forget_session(message.session)
            case RelayObject():
                self._effects.append(Relay(message.object))
            case WriteCheckpoint():
                if message.object in self.held:
                    self.saving.add(message.object)
                    self._effects.append(SaveObject(message.object, message.path))
                else:
                    self._report_missing(message.object)
            case WriteTrace():
                self._effects.append(StartTrace(message.path))
            case WorkerAccepted():
                self.id = message.worker
            case StopWorker():
                self._effects.append(Stop())
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__}")

    def _on_run_tasks(self, message: RunTasks) -> None:
        for kind in message.kinds:
            place = self._places.get(kind.symbol, "")
            self._kinds[kind.kind] = WorkerKind(kind.kind, kind.symbol, kind.label, kind.request, place)
        for peer in message.peers:
            self.peers[peer.worker] = peer
        for located in message.objects:
            self._locate(located)
        for run in message.tasks:
            self._on_run_task(run)

    def _locate(self, located: ObjectAt) -> None:
        if located.object in self.held:
            return
        sources = [w for w in located.workers if w != self.id and w in self.peers]
        fetching = self.fetching.get(located.object)
        if fetching is not None:
            fetching.sources = sources
        elif sources:
            self.fetching[located.object] = _Fetching(located.size_bytes, sources)
            self._fetch(located.object)

    def _fetch(self, object_id: int) -> None:
        source = self.fetching[object_id].sources.pop(0)
        self._fetches.setdefault(source, []).append(object_id)

    def _on_run_task(self, run: RunTask) -> None:
        kind = self._kinds.get(run.kind)
        if kind is None:
            raise ProtocolError(f"the server sent a task of kind {run.kind} without saying what that is")
        old = self.tasks.get(run.task)
        if old is not None:
            self._cancel(old)
        task = Task(run, kind)
        self.tasks[run.task] = task
        held = self.held
        if run.task in held:  # from before it was lost elsewhere
            del held[run.task]
            self.copies.add(run.task)
        elif run.task in self.fetching:
            del self.fetching[run.task]
        if not kind.place:
            self._fail(task, _NO_SUCH_TYPE.format(kind.symbol), crashed=False)
            return
        inputs = run.inputs
        missing = [i for i in (dict.fromkeys(inputs) if len(inputs) > 1 else inputs) if i not in held]
        if not missing:
            self._make_ready(task)
        elif all(i in self.fetching or i in self.tasks for i in missing):
            task.n_missing = len(missing)
            for object_id in missing:
                self.awaited.setdefault(object_id, []).append(task)
        else:
            for object_id in missing:
                if object_id not in self.fetching and object_id not in self.tasks:
                    self._report_missing(object_id)
            self._give_back(task)

    def _make_ready(self, task: Task) -> None:
        task.state = ws.READY
        if task.kind.place == INLINE and not task.cpus:
            held = self.held
            if sum([held[i] for i in task.inputs]) <= INLINE_TASK_BYTES or task.kind.symbol in ws.NEVER_TOUCHES_BYTES:
                self._inline.append(task)
                return
        self.queues.add(task)

    # -- What came of it ----------------------------------------------------------------------------------------------

    def _on_done(self, done: Done) -> None:
        task = self._settle(done.task, done.attempt)
        if task is None:
            self._void(done.task)
            return
        if self.copies:
            self.copies.discard(done.task)
        task.kind.measured(done.duration_us)
        self.held[done.task] = done.size_bytes
        self._finished.append(done)
        if not self._can_wait(task):
            self._urgent = True
        self._wake(done.task)

    def _on_not_inline(self, event: NotInline) -> None:
        """A task that was to run in the loop goes to an executor, unless it is not wanted any more."""
        task = self.tasks.get(event.task)
        if task is not None and task.attempt == event.attempt:
            task.state = ws.READY
            self._requeue([task])

    def _on_checkpoint_done(self, event: CheckpointDone) -> None:
        if event.object in self.saving:  # else it was for a server that is gone
            self.saving.remove(event.object)
            self._report(CheckpointWritten(event.object, event.error))

    def _can_wait(self, task: Task) -> bool:
        """Whether the server need not know of a finish at once: no other worker can go on with it, and this one can."""
        if task.n_consumers:
            return len(self.awaited.get(task.id, ())) == task.n_consumers and not task.flags & RESULT
        return bool(self.queues.ready)

    def _settle(self, task_id: int, attempt: int) -> Task | None:
        """Take a task that is over out of the books; None when it had been cancelled before."""
        self.queues.over((task_id, attempt), self._now)
        task = self.tasks.get(task_id)
        if task is None or task.attempt != attempt:
            return None
        del self.tasks[task_id]
        task.state = ws.OVER
        return task

    def _wake(self, object_id: int) -> None:
        waiting = self.awaited.pop(object_id, None)
        if waiting is not None:
            for task in waiting:
                if task.state == ws.WAITING:
                    task.n_missing -= 1
                    if not task.n_missing:
                        self._make_ready(task)

    def _void(self, object_id: int) -> None:
        """The shell has stored something that is not to be held."""
        if object_id in self.tasks:
            self.copies.add(object_id)
        elif object_id not in self.held:
            self._dropped.append(object_id)

    def _drop_copy(self, object_id: int) -> None:
        if object_id in self.copies:
            self.copies.remove(object_id)
            self._dropped.append(object_id)

    def _on_failed(self, event: Failed) -> None:
        task = self._settle(event.task, event.attempt)
        if task is not None:
            self._fail(task, event.error, event.crashed)

    def _fail(self, task: Task, error: str, crashed: bool) -> None:
        self.tasks.pop(task.id, None)
        task.state = ws.OVER
        self._drop_copy(task.id)
        self._report(TasksFailed([FailedTask(task.id, task.attempt, error, crashed)]))
        self._give_back_dependents(task.id)

    def _on_redirected(self, event: Redirected) -> None:
        task = self._settle(event.task, event.attempt)
        if task is not None:
            self._drop_copy(task.id)
            self._report(TaskRedirected(event.task, event.attempt, event.chunk))
            self._give_back_dependents(task.id)

    def _on_executor_lost(self, event: ExecutorLost) -> None:
        crashed, others = self.queues.executor_lost(event.executor, event.running)
        self._requeue(others)
        if crashed is not None:
            self._fail(crashed, event.story, crashed=True)

    def _on_server_lost(self) -> None:
        """Without its server everything here is void; the next registration begins anew."""
        while self.tasks:
            self._cancel(next(iter(self.tasks.values())))
        self._dropped += self.held
        self.held.clear()
        self.queues.owed = 0
        self.fetching.clear()
        self.awaited.clear()
        self.saving.clear()
        self._kinds.clear()
        self.peers.clear()
        self._finished.clear()
        self._urgent = False
        self._quiet_until = None
        self._reports.clear()
        self._given.clear()
        self._fetches.clear()
        self._arrived.clear()

    # -- Objects ------------------------------------------------------------------------------------------------------

    def _on_fetched(self, object_id: int, size_bytes: int) -> None:
        if self.fetching.pop(object_id, None) is None:
            self._void(object_id)  # dropped while it was on its way
            return
        self.held[object_id] = size_bytes
        self._arrived.append(object_id)
        self._wake(object_id)

    def _on_fetch_failed(self, object_id: int) -> None:
        fetching = self.fetching.get(object_id)
        if fetching is None:
            return
        if fetching.sources:
            self._fetch(object_id)
        else:
            del self.fetching[object_id]
            self._give_back_dependents(object_id)

    def _drop(self, object_id: int) -> None:
        if self.held.pop(object_id, None) is not None:
            self._dropped.append(object_id)
        self.fetching.pop(object_id, None)
        if object_id not in self.tasks:
            self._give_back_dependents(object_id)

    def _on_spoilt(self, object_id: int) -> None:
        """Give back what has not started and needs the object."""
        if object_id not in self.held:
            return
        self._drop(object_id)
        self._report_missing(object_id)
        for task in list(self.tasks.values()):
            if object_id in task.inputs:
                self._give_back(task)

    # -- Giving back and cancelling -----------------------------------------------------------------------------------

    def _give_back(self, task: Task) -> None:
        """Return a task that has not started, and those here that wait for it."""
        stack = [task]
        while stack:
            task = stack.pop()
            if task.state not in (ws.WAITING, ws.READY):
                continue
            task.state = ws.OVER
            del self.tasks[task.id]
            self._drop_copy(task.id)
            self._given.append(task)
            stack += self.awaited.pop(task.id, ())

    def _give_back_dependents(self, object_id: int) -> None:
        for waiting in self.awaited.pop(object_id, ()):
            self._give_back(waiting)

    def _on_give_back(self, count: int) -> None:
        """Give back what would start last, but nothing that can start now: it would be handed round for ever."""
        self._effects += self.queues.start(self._now)
        if self._given:
            self._report_given(answer=False)
        for task in self.queues.last_ready(count):
            self._give_back(task)
        if self._given:
            self._report_given(answer=True)
            return
        longest = self.queues.longest_executor()
        if longest is None:
            self._report_given(answer=True)
        else:
            self.queues.owed = min(count, len(longest.queue))
            self._effects.append(ReadBack(longest.index, self.queues.owed))

    def _on_read_back(self, event: ReadBackDone) -> None:
        tasks = self.queues.take_back(event.runs)
        if self.queues.owed:
            self.queues.owed = 0
            for task in tasks:
                self._give_back(task)
            self._report_given(answer=True)
        else:
            self._requeue(tasks)

    def _requeue(self, tasks: list[Task]) -> None:
        """What comes back from an executor is ready again, unless an input has been lost since (it was recalled)."""
        ready = []
        for task in tasks:
            if all(i in self.held for i in task.inputs):
                ready.append(task)
            else:
                self._give_back(task)
        self.queues.add_first(ready)

    def _cancel(self, task: Task) -> None:
        running = task.state
        del self.tasks[task.id]
        task.state = ws.OVER
        self._drop_copy(task.id)
        if running == ws.RUNNING and task.kind.place != INLINE:
            self._effects.append(StopProgram(task.id, task.attempt))
        elif running == ws.QUEUED:
            self.queues.cancelled(task, self._now)
        self._give_back_dependents(task.id)

    def _on_forget_session(self, session: int) -> None:
        for task in [t for t in self.tasks.values() if session_of(t.id) == session]:
            if task.id in self.tasks:
                self._cancel(task)
        self._given = [t for t in self._given if session_of(t.id) != session]
        for object_id in [i for i in (*self.held, *self.fetching) if session_of(i) == session]:
            self._drop(object_id)
