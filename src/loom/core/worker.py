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
from loom.core.worker_chains import Chains
from loom.core.worker_events import (
    CheckpointDone,
    Condition,
    Done,
    Drain,
    Drop,
    ExecutorLost,
    ExecutorReady,
    Failed,
    Fetched,
    FetchFailed,
    FromServer,
    NotInline,
    NotRun,
    NotSent,
    OverMemory,
    ReadBackDone,
    Redirected,
    Relay,
    RunInline,
    SaveObject,
    ServerLost,
    Spoilt,
    StartTrace,
    StillRunning,
    Stop,
    TasksDone,
    ToServer,
    WorkerEffect,
    WorkerEvent,
)
from loom.core.worker_fetches import Fetches
from loom.core.worker_queues import Queues
from loom.core.worker_reports import WorkerReports
from loom.core.worker_tasks import INLINE, ReadBack, StopProgram, Task, WorkerKind
from loom.errors import ProtocolError
from loom.ids import session_of
from loom.limits import INLINE_TASK_BYTES
from loom.messages import (
    RESULT,
    CancelTasks,
    CheckpointWritten,
    DropObjects,
    FailedTask,
    ForgetSession,
    GiveBack,
    Message,
    NotTaken,
    ObjectAt,
    RecallTasks,
    RelayedObject,
    RelayObject,
    RelayPiece,
    RunTask,
    RunTasks,
    StopWorker,
    TakeObjects,
    TaskRedirected,
    TasksFailed,
    WorkerAccepted,
    WorkerCondition,
    WorkerLeaves,
    WriteCheckpoint,
    WriteTrace,
)
from loom.resources import MEM, size_text

_NO_EXTRAS: Final[Mapping[str, int]] = MappingProxyType({})
_NO_SUCH_TYPE: Final = "unknown task type {!r}: no worker has it (own types are loaded with --load)"


class WorkerCore:
    """`places` says for each task type where it runs: "inline", "executor" or "program".

    `extras`: what the worker has besides cores, in the units of `Request.extras`.
    """

    def __init__(self, cpus: int, places: Mapping[str, str], extras: Mapping[str, int] = _NO_EXTRAS) -> None:
        self._places = places
        self.queues = Queues(cpus, extras)
        self.tasks: dict[int, Task] = {}
        self.held: dict[int, int] = {}  # object id -> size
        self.fetches = Fetches()
        self.fetching = self.fetches.under_way
        self.awaited: dict[int, list[Task]] = {}  # object id -> tasks that wait for it
        self.copies: set[int] = set()  # stored objects that count for nothing: their tasks are to run here once more
        self._chains = Chains(self.queues, self.tasks, self.held, self.awaited, self.copies)
        self.saving: set[int] = set()  # objects that are being written to their checkpoints
        self.id = 0
        self.leave_at: float | None = None  # the worker is to go: it starts nothing, and what runs is stopped then
        self._condition = Condition(False, False)
        self._taking: set[int] = set()  # objects that a worker that leaves hands over, and that nobody here need want
        self._kinds: dict[int, WorkerKind] = {}
        self._effects: list[WorkerEffect] = []
        self._for_loop: list[Task] = []
        self._reports = WorkerReports()
        self._dropped: list[int] = []
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
                    self._on_fetch_failed(event.object, event.unreachable)
                case Failed():
                    self._on_failed(event)
                case Redirected():
                    self._on_redirected(event)
                case ReadBackDone():
                    self._on_read_back(event)
                case NotSent():
                    self._requeue(self.queues.not_sent(event.executor, event.runs))
                case NotRun():
                    self._requeue(self.queues.take_back(event.runs))
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
                case StillRunning():
                    self.queues.still_running(event.executor, event.run, event.left_s, now)
                case OverMemory():
                    self._on_over_memory(event)
                case Condition():
                    self._condition = event
                    self._reports.add(WorkerCondition(event.over_budget, event.disk_full))
                case Drain():
                    self._on_drain(event.until)
                case ServerLost():
                    self._on_server_lost()
        if self.leave_at is not None and now >= self.leave_at:
            self._stop_all()
        return self._flush()

    def next_deadline(self) -> float | None:
        deadlines = [self.queues.next_deadline(), self._reports.quiet_until, self.leave_at if self.tasks else None]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def expects(self, task: int, attempt: int) -> bool:
        """Whether a result of this attempt is still wanted; the shell keeps the object only then."""
        known = self.tasks.get(task)
        return known is not None and known.attempt == attempt

    def unsaid(self) -> tuple[object, ...]:
        """What waits to become an effect: empty between steps."""
        return self._effects, self._for_loop, self._dropped, *self._reports.unsaid(), *self.fetches.unsaid()

    def _flush(self) -> list[WorkerEffect]:
        effects, self._effects = self._effects, []
        if self._dropped:
            gone = [i for i in self._dropped if i not in self.held]
            if gone:
                effects.append(Drop(gone))
            self._dropped = []
        wanted = self.fetches.take_wanted()
        if wanted is not None:
            self._reports.add(wanted)
        messages = self._reports.take(self._now)
        if messages:
            effects.append(ToServer(messages))
        effects += self.fetches.take()
        if self._for_loop:
            inline = [task for task in self._for_loop if task.state == ws.READY]  # still, at the end of the turn
            for task in inline:
                task.state = ws.RUNNING
            if inline:
                effects.append(RunInline(inline))
            self._for_loop = []
        placed = self.queues.start(self._now)
        self._chains.follow(self._now, placed)
        effects += placed
        return effects

    def _report_missing(self, object_id: int) -> None:
        """Tell the server that an object is not here. This ends no relay: one under way has the bytes already."""
        self._reports.add(RelayPiece(object_id, b"", b"", False, "the worker does not have the object"))

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
                    if task is not None:
                        self._give_back(task)
            case GiveBack():
                self._on_give_back(message.count)
            case ForgetSession():
                self._on_forget_session(message.session)
            case RelayObject():
                self._effects.append(Relay(message.object, message.pieces, message.go_on))
            case WriteCheckpoint():
                if message.object in self.held:
                    self.saving.add(message.object)
                    self._effects.append(SaveObject(message.object, message.path))
                else:
                    self._report_missing(message.object)
            case WriteTrace():
                self._effects.append(StartTrace(message.path))
            case TakeObjects():
                for peer in message.peers:
                    self.fetches.peers[peer.worker] = peer
                for located in message.objects:
                    if located.object not in self.held:
                        self._taking.add(located.object)
                        self._locate(located)
                        if located.object not in self.fetching:
                            self._on_unavailable(located.object)
            case RelayedObject():
                self._on_relayed(message)
            case WorkerAccepted():
                self._on_accepted(message)
            case StopWorker():
                self._effects.append(Stop())
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__}")

    def _on_run_tasks(self, message: RunTasks) -> None:
        for kind in message.kinds:
            place = self._places.get(kind.symbol, "")
            self._kinds[kind.kind] = WorkerKind(kind.kind, kind.symbol, kind.label, kind.request, place)
        for peer in message.peers:
            self.fetches.peers[peer.worker] = peer
        for located in message.objects:
            self._locate(located)
        for run in message.tasks:
            self._on_run_task(run)

    def _locate(self, located: ObjectAt) -> None:
        if located.object not in self.held and located.object not in self.tasks:
            self.fetches.locate(located, self.id)

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
        elif run.task in self.fetching and self.fetches.forget(run.task):
            self._dropped.append(run.task)
        if self.leave_at is not None:
            self._give_back(task)
            return
        if not kind.place:
            self._fail(task, _NO_SUCH_TYPE.format(kind.symbol))
            return
        inputs = run.inputs
        missing = [i for i in (dict.fromkeys(inputs) if len(inputs) > 1 else inputs) if i not in held]
        if not missing:
            self._make_ready(task)
        elif all(i in self.fetching or i in self.tasks for i in missing):
            task.n_missing = len(missing)
            for object_id in missing:
                self.awaited.setdefault(object_id, []).append(task)
            self._chains.look_at(task)
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
                self._for_loop.append(task)
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
        self._reports.finished(done, self._can_wait(task))
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
            self._reports.add(CheckpointWritten(event.object, event.error))

    def _can_wait(self, task: Task) -> bool:
        """Whether the server need not know of a finish at once: no other worker can go on with it, and this one can."""
        if self.leave_at is not None:
            return False
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
                task.n_missing -= 1
                if not task.n_missing and task.state == ws.WAITING:
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
            self._fail(task, event.error)

    def _fail(self, task: Task, error: str) -> None:
        self.tasks.pop(task.id, None)
        task.state = ws.OVER
        self._drop_copy(task.id)
        self._reports.add(TasksFailed([FailedTask(task.id, task.attempt, error)]))
        self._give_back_dependents(task.id)

    def _on_redirected(self, event: Redirected) -> None:
        task = self._settle(event.task, event.attempt)
        if task is not None:
            self._drop_copy(task.id)
            self._reports.add(TaskRedirected(event.task, event.attempt, event.chunk))
            self._give_back_dependents(task.id)

    def _on_executor_lost(self, event: ExecutorLost) -> None:
        died_in, others = self.queues.executor_lost(event.executor, event.running)
        self._requeue(others)
        if died_in is not None:
            self._fail(died_in, event.story)

    def _on_over_memory(self, event: OverMemory) -> None:
        task = self.tasks.get(event.task)
        if task is not None and task.attempt == event.attempt:
            limit_bytes = next((amount for name, amount in task.kind.extras if name == MEM), 0)
            why = f"memory limit of {size_text(limit_bytes)} exceeded: peak {size_text(event.peak_bytes)}"
            self._effects += self.queues.stop(task, 0.0, why)

    def _on_server_lost(self) -> None:
        """Without its server everything here is void; the next registration begins anew."""
        while self.tasks:
            self._cancel(next(iter(self.tasks.values())))
        self._dropped += self.held
        self.held.clear()
        self.queues.owed = 0
        self.fetches.clear()
        self._taking.clear()
        self.awaited.clear()
        self.saving.clear()
        self._kinds.clear()
        self._reports.clear()
        if self.leave_at is not None:
            self._effects.append(Stop())

    # -- Objects ------------------------------------------------------------------------------------------------------

    def _on_fetched(self, object_id: int, size_bytes: int) -> None:
        self._taking.discard(object_id)
        if not self.fetches.arrived(object_id):
            self._void(object_id)  # dropped while it was on its way
            return
        self.held[object_id] = size_bytes
        self._reports.arrived(object_id)
        self._wake(object_id)

    def _on_fetch_failed(self, object_id: int, unreachable: bool) -> None:
        if self.fetches.failed(object_id, unreachable):
            self._on_unavailable(object_id)

    def _on_unavailable(self, object_id: int) -> None:
        """An object does not come."""
        self._give_back_dependents(object_id)
        if object_id in self._taking:
            self._taking.remove(object_id)
            self._reports.add(NotTaken(ids_column([object_id])))

    def _on_relayed(self, message: RelayedObject) -> None:
        take, failed = self.fetches.on_piece(message)
        if take is not None:
            self._effects.append(take)
        if failed:
            self._dropped.append(message.number)  # of which a part may be here
            self._on_unavailable(message.number)

    def _drop(self, object_id: int) -> None:
        self._taking.discard(object_id)
        if self.held.pop(object_id, None) is not None:
            self._dropped.append(object_id)
        if self.fetches.forget(object_id):
            self._dropped.append(object_id)
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

    # -- Leaving ------------------------------------------------------------------------------------------------------

    def _on_accepted(self, message: WorkerAccepted) -> None:
        self.id = message.worker
        if self._condition.over_budget or self._condition.disk_full:
            self._reports.add(WorkerCondition(self._condition.over_budget, self._condition.disk_full))
        if self.leave_at is not None:
            self._reports.add(WorkerLeaves())

    def _on_drain(self, until: float) -> None:
        """Give back what has not started; what runs may go on until then."""
        if self.leave_at is None:
            self._reports.add(WorkerLeaves())
            self._effects += self.queues.read_all_back()
        self.leave_at = until if self.leave_at is None else min(self.leave_at, until)
        for task in [task for task in self.tasks.values() if task.state in (ws.WAITING, ws.READY)]:
            self._give_back(task)

    def _stop_all(self) -> None:
        """Give back what still runs, too: it is run again elsewhere."""
        for task in list(self.tasks.values()):
            if task.id in self.tasks:
                self._cancel(task)
                self._reports.given.append(task)

    # -- Giving back and cancelling -----------------------------------------------------------------------------------

    def _give_back(self, task: Task) -> None:
        """Return a task that has not started, and those here that wait for it, be it at an executor."""
        stack = [task]
        while stack:
            task = stack.pop()
            if task.state == ws.QUEUED and task.n_missing:
                self.queues.cancelled(task, self._now)
            elif task.state not in (ws.WAITING, ws.READY):
                continue
            task.state = ws.OVER
            del self.tasks[task.id]
            self._drop_copy(task.id)
            self._reports.given.append(task)
            stack += self.awaited.pop(task.id, ())

    def _give_back_dependents(self, object_id: int) -> None:
        for waiting in self.awaited.pop(object_id, ()):
            self._give_back(waiting)

    def _on_give_back(self, count: int) -> None:
        """Give back what would start last, but nothing that can start now: it would be handed round for ever."""
        self._effects += self.queues.start(self._now)
        if self._reports.given:
            self._reports.say_given(answer=False)
        for task in self.queues.last_ready(count):
            self._give_back(task)
        if self._reports.given:
            self._reports.say_given(answer=True)
            return
        longest = self.queues.longest_executor()
        if longest is None:
            self._reports.say_given(answer=True)
        else:
            self.queues.owed = min(count, longest.n_spare())
            self._effects.append(ReadBack(longest.index, self.queues.owed))

    def _on_read_back(self, event: ReadBackDone) -> None:
        tasks = self.queues.take_back(event.runs)
        if self.queues.owed:
            self.queues.owed = 0
            for task in tasks:
                if task.state == ws.READY:  # others wait for what runs here
                    self._give_back(task)
            self._reports.say_given(answer=True)
        else:
            self._requeue(tasks)

    def _requeue(self, tasks: list[Task]) -> None:
        """What comes back from an executor is ready again, unless an input has been lost since (it was recalled), or
        waits for those it was to follow.
        """
        ready = []
        for task in tasks:
            if self.leave_at is not None:
                self._give_back(task)
            elif task.state == ws.READY:
                if all(i in self.held for i in task.inputs):
                    ready.append(task)
                else:
                    self._give_back(task)
            else:
                self._chains.look_at(task)
        self.queues.add_first(ready)

    def _cancel(self, task: Task) -> None:
        running = task.state
        del self.tasks[task.id]
        task.state = ws.OVER
        self._drop_copy(task.id)
        if running == ws.RUNNING and task.kind.place != INLINE:
            self._effects.append(StopProgram(task.id, task.attempt, "cancelled"))
        elif running == ws.QUEUED:
            self.queues.cancelled(task, self._now)
        self._give_back_dependents(task.id)

    def _on_forget_session(self, session: int) -> None:
        for task in [t for t in self.tasks.values() if session_of(t.id) == session]:
            if task.id in self.tasks:
                self._cancel(task)
        self._reports.given = [t for t in self._reports.given if session_of(t.id) != session]
        for object_id in [i for i in (*self.held, *self.fetching) if session_of(i) == session]:
            self._drop(object_id)
        self.fetches.forget_session(session)
