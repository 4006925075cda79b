"""The worker's brain: which task may run where and when, which objects to fetch, what to give back.

It knows ids and sizes, never bytes. The shell performs the effects in order and tells what came of them. The server
relies on this: a task is not started before all its inputs are held here, facts are reported in causal order, each
assignment that is not cancelled is answered once, what was given back does not run, and a cancelled task leaves no
object behind, even where it was finished before the cancellation came.

Without a server it says nothing and goes on with what it has, as long as the server has asked it to.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from loom.core import worker_states as ws
from loom.core.columns import column
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
    HangUp,
    Leave,
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
from loom.core.worker_keeping import what_is_here
from loom.core.worker_objects import Objects
from loom.core.worker_queues import Queues
from loom.core.worker_reports import WorkerReports
from loom.core.worker_returns import Returns
from loom.core.worker_tasks import INLINE, Task, WorkerKind
from loom.errors import ProtocolError
from loom.limits import INLINE_TASK_BYTES
from loom.messages import (
    RESULT,
    CancelTasks,
    CheckpointWritten,
    DropObjects,
    FailedTask,
    ForgetSession,
    GiveBack,
    LeaveWorker,
    Message,
    ObjectAt,
    RecallTasks,
    RelayedObject,
    RelayObject,
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
        self.objects = Objects(self.tasks)
        self.held = self.objects.held
        self.copies = self.objects.copies
        self.fetches = Fetches()
        self.fetching = self.fetches.under_way
        self.awaited: dict[int, list[Task]] = {}  # object id -> tasks that wait for it
        self.reports = WorkerReports()
        self._effects: list[WorkerEffect] = []
        self._chains = Chains(self.queues, self.tasks, self.held, self.awaited, self.copies)
        self._returns = Returns(
            self.tasks, self.awaited, self.objects, self.fetches, self.queues, self._chains, self.reports, self._effects
        )
        self.saving: set[int] = set()  # objects that are being written to their checkpoints
        self.id = 0
        self.attached = False  # a server has accepted us, and its link is there
        self.patience_s = 0  # how long to keep everything when it is not
        self.keeps_until: float | None = None  # without a server: when all that was kept becomes void
        self.leave_at: float | None = None  # the worker is to go: it starts nothing, and what runs is stopped then
        self._condition = Condition(False, False)
        self._kinds: dict[int, WorkerKind] = {}
        self._for_loop: list[Task] = []
        self._now = 0.0

    # -- The turn -----------------------------------------------------------------------------------------------------

    def step(self, events: list[WorkerEvent], now: float) -> list[WorkerEffect]:
        self._now = self._returns.now = now
        for event in events:
            match event:
                case TasksDone():
                    for done in event.tasks:
                        self._on_done(done)
                case FromServer():
                    self._on_server_messages(event.messages)
                case Fetched():
                    self._on_fetched(event.object, event.size_bytes)
                case FetchFailed():
                    self._on_fetch_failed(event.object, event.unreachable)
                case Failed():
                    self._on_failed(event)
                case Redirected():
                    self._on_redirected(event)
                case ReadBackDone():
                    self._returns.read_back(event)
                case NotSent():
                    self._returns.requeue(self.queues.not_sent(event.executor, event.runs))
                case NotRun():
                    self._returns.requeue(self.queues.take_back(event.runs))
                case ExecutorLost():
                    self._on_executor_lost(event)
                case ExecutorReady():
                    self.queues.executors[event.executor].alive = True
                case Spoilt():
                    self._returns.spoilt(event.object)
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
                    self.reports.add(WorkerCondition(event.over_budget, event.disk_full))
                case Drain():
                    self._on_drain(event.until)
                case ServerLost():
                    self._on_server_lost()
        if self.leave_at is not None and now >= self.leave_at:
            self._returns.stop_all()
        if self.keeps_until is not None and now >= self.keeps_until:
            self._begin_anew()
        return self._flush()

    def next_deadline(self) -> float | None:
        deadlines = [self.queues.next_deadline(), self.reports.quiet_until, self.keeps_until]
        deadlines.append(self.leave_at if self.tasks else None)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def expects(self, task: int, attempt: int) -> bool:
        """Whether a result of this attempt is still wanted; the shell keeps the object only then."""
        known = self.tasks.get(task)
        return known is not None and known.attempt == attempt

    def unsaid(self) -> tuple[object, ...]:
        """What waits to become an effect: empty between steps."""
        return self._effects, self._for_loop, self.objects.dropped, *self.reports.unsaid(), *self.fetches.unsaid()

    def _flush(self) -> list[WorkerEffect]:
        effects = self._effects.copy()
        self._effects.clear()
        if self.objects.dropped and (gone := self.objects.take_dropped()):
            effects.append(Drop(gone))
        wanted = self.fetches.take_wanted()
        if wanted is not None:
            self.reports.add(wanted)
        if self.attached:
            messages = self.reports.take(self._now)
            if messages:
                effects.append(ToServer(messages))
        else:
            self.reports.keep_failures()
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

    # -- What the server says -----------------------------------------------------------------------------------------

    def _on_server_messages(self, messages: list[Message]) -> None:
        try:
            for message in messages:
                self._on_server_message(message)
        except ProtocolError as error:
            self._effects.append(HangUp(str(error)))

    def _on_server_message(self, message: Message) -> None:
        match message:
            case RunTasks():
                self._on_run_tasks(message)
            case DropObjects():
                for object_id in column(message.objects, "Q"):
                    self._returns.drop(object_id)
            case CancelTasks():
                for task_id in column(message.tasks, "Q"):
                    task = self.tasks.get(task_id)
                    if task is not None:
                        self._returns.cancel(task)
                    else:  # it had been finished before
                        self._returns.drop(task_id)
            case RecallTasks():
                for task_id in column(message.tasks, "Q"):
                    task = self.tasks.get(task_id)
                    if task is not None:
                        self._returns.give_back(task)
            case GiveBack():
                self._returns.give_some_back(message.count)
            case ForgetSession():
                self._returns.forget_session(message.session)
            case RelayObject():
                self._effects.append(Relay(message.object, message.pieces, message.go_on))
            case WriteCheckpoint():
                if message.object in self.held:
                    self.saving.add(message.object)
                    self._effects.append(SaveObject(message.object, message.path))
                else:
                    self.reports.missing(message.object)
            case WriteTrace():
                self._effects.append(StartTrace(message.path))
            case TakeObjects():
                self._on_take_objects(message)
            case RelayedObject():
                self._on_relayed(message)
            case WorkerAccepted():
                self._on_accepted(message)
            case StopWorker():
                self._effects.append(Stop())
            case LeaveWorker():
                self._effects.append(Leave())
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__}")

    def _on_run_tasks(self, message: RunTasks) -> None:
        for kind in message.kinds:
            place = self._places.get(kind.symbol, "")
            self._kinds[kind.kind] = WorkerKind(kind.kind, kind.symbol, kind.label, kind.request, place)
        self.fetches.introduce(message.peers)
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
            self._returns.cancel(old)
        task = Task(run, kind)
        self.tasks[run.task] = task
        held = self.held
        if run.task in held:  # from before it was lost elsewhere
            self.objects.release(run.task)
            self.copies.add(run.task)
        elif run.task in self.fetching and self.fetches.forget(run.task):
            self.objects.dropped.append(run.task)
        if self.leave_at is not None:
            self._returns.give_back(task)
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
                    self.reports.missing(object_id)
            self._returns.give_back(task)

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
            self.objects.void(done.task)
            return
        if self.copies:
            self.copies.discard(done.task)
        task.kind.measured(done.duration_us)
        self.objects.hold(done.task, done.size_bytes, done.attempt, done.length)
        self.reports.finished(done, self._can_wait(task))
        self._wake(done.task)

    def _on_not_inline(self, event: NotInline) -> None:
        """A task that was to run in the loop goes to an executor, unless it is not wanted any more."""
        task = self.tasks.get(event.task)
        if task is not None and task.attempt == event.attempt:
            task.state = ws.READY
            self._returns.requeue([task])

    def _on_checkpoint_done(self, event: CheckpointDone) -> None:
        if event.object in self.saving:  # else it was for a server that is gone
            self.saving.remove(event.object)
            self.reports.add(CheckpointWritten(event.object, event.error))

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

    def _on_failed(self, event: Failed) -> None:
        task = self._settle(event.task, event.attempt)
        if task is None:
            return
        if event.interrupted:
            self._returns.interrupted(task)
        else:
            self._fail(task, event.error)

    def _fail(self, task: Task, error: str) -> None:
        self.tasks.pop(task.id, None)
        task.state = ws.OVER
        self.objects.drop_copy(task.id)
        self.reports.add(TasksFailed([FailedTask(task.id, task.attempt, error)]))
        self._returns.give_back_dependents(task.id)

    def _on_redirected(self, event: Redirected) -> None:
        task = self._settle(event.task, event.attempt)
        if task is not None:
            self.objects.drop_copy(task.id)
            self.reports.add(TaskRedirected(event.task, event.attempt, event.chunk))
            self._returns.give_back_dependents(task.id)

    def _on_executor_lost(self, event: ExecutorLost) -> None:
        died_in, others = self.queues.executor_lost(event.executor, event.running)
        self._returns.requeue(others)
        if died_in is not None:
            self._fail(died_in, event.story)

    def _on_over_memory(self, event: OverMemory) -> None:
        task = self.tasks.get(event.task)
        if task is not None and task.attempt == event.attempt:
            limit_bytes = next((amount for name, amount in task.kind.extras if name == MEM), 0)
            why = f"memory limit of {size_text(limit_bytes)} exceeded: peak {size_text(event.peak_bytes)}"
            self._effects += self.queues.stop(task, 0.0, why)

    # -- Objects ------------------------------------------------------------------------------------------------------

    def _on_fetched(self, object_id: int, size_bytes: int) -> None:
        self._returns.taking.discard(object_id)
        fetching = self.fetches.arrived(object_id)
        if fetching is None:
            self.objects.void(object_id)  # dropped while it was on its way
            return
        self.objects.hold(object_id, size_bytes, fetching.attempt, fetching.length)
        self.reports.arrived(object_id)
        self._wake(object_id)

    def _on_fetch_failed(self, object_id: int, unreachable: bool) -> None:
        if self.fetches.failed(object_id, unreachable):
            self._returns.unavailable(object_id)

    def _on_relayed(self, message: RelayedObject) -> None:
        take, failed = self.fetches.on_piece(message)
        if take is not None:
            self._effects.append(take)
        if failed:
            self.objects.dropped.append(message.number)  # of which a part may be here
            self._returns.unavailable(message.number)

    def _on_take_objects(self, message: TakeObjects) -> None:
        self.fetches.introduce(message.peers)
        for located in message.objects:
            if located.object not in self.held:
                self._returns.taking.add(located.object)
                self._locate(located)
                if located.object not in self.fetching:
                    self._returns.unavailable(located.object)

    # -- The server comes and goes ------------------------------------------------------------------------------------

    def _on_accepted(self, message: WorkerAccepted) -> None:
        self.id = message.worker
        if message.keeps:
            self._returns.give_up_strays()
            for part in what_is_here(self.objects, self.tasks, self.reports):
                self.reports.add(part)
        else:
            self._begin_anew()
        self.attached = True
        self.keeps_until = None
        self.patience_s = message.patience_s
        self.objects.identify(message.patience_s > 0)
        if self._condition.over_budget or self._condition.disk_full:
            self.reports.add(WorkerCondition(self._condition.over_budget, self._condition.disk_full))

    def _on_server_lost(self) -> None:
        """Go on with what needs nobody else, for as long as the server has said; without patience all is void."""
        if not self.attached:
            return  # it was lost before, and has been connected without accepting us
        self.attached = False
        if self.leave_at is not None or not self.patience_s:
            self._begin_anew()
        else:
            self.keeps_until = self._now + self.patience_s
            self._forget_server()
            self._returns.give_up_strays()
            self.reports.keep_failures()
        if self.leave_at is not None:
            self._effects.append(Stop())

    def _begin_anew(self) -> None:
        """All that is here is void."""
        self.keeps_until = None
        self._returns.give_all_up()
        self._forget_server()
        self.reports.clear()

    def _forget_server(self) -> None:
        """Whatever it has asked for, or was to send, is void."""
        self.queues.owed = 0
        self.fetches.clear()
        self._returns.taking.clear()
        self.saving.clear()
        self._kinds.clear()
        self._effects[:] = [
            effect for effect in self._effects if not isinstance(effect, Relay)
        ]  # asked for just before

    def _on_drain(self, until: float) -> None:
        """Give back what has not started; what runs may go on until then. Without a server all is void at once."""
        if not self.attached:
            self._begin_anew()
            self._effects.append(Stop())
            return
        if self.leave_at is None:
            self.reports.add(WorkerLeaves())
            self._effects += self.queues.read_all_back()
        self._returns.leaving = True
        self.leave_at = until if self.leave_at is None else min(self.leave_at, until)
        for task in [task for task in self.tasks.values() if task.state in (ws.WAITING, ws.READY)]:
            self._returns.give_back(task)
