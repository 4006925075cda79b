"""Cores and executors of one worker: which ready task starts next, and where.

Tasks start in the order in which the server sent them. Short ones queue at executors up to a window of time; a task
that needs more cores than are free may be overtaken for a bounded time, then cores are kept for it. Tasks that ask for
more than cores (memory, gpus, ...) wait in a line for each request, never behind others at an executor. When an
executor is idle while another's queue stands, the queue is read back.

A function finds the number of its cores and its gpus in its environment (OMP_NUM_THREADS, CUDA_VISIBLE_DEVICES), and
what libraries made of that does not change while a process lives: an executor with another environment is started
again before it gets the task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from loom.core import worker_states as ws
from loom.core.kinds import EXECUTOR_WINDOW_US
from loom.core.worker_amounts import Amounts
from loom.core.worker_tasks import (
    PROGRAM,
    STUCK_S,
    Environment,
    Executor,
    KillExecutor,
    QueueEffect,
    ReadBack,
    RestartExecutor,
    Run,
    RunOnExecutor,
    RunProgram,
    StopProgram,
    Task,
)
from loom.limits import LIGHT_PROGRAMS
from loom.resources import Request

_QUEUE_TASKS: Final = 256  # most tasks queued at one executor
_RESERVE_AFTER_S: Final = 0.1  # how long a wide task is overtaken before cores are kept for it
_LOOK_PAST: Final = 32  # how many tasks are looked at behind one that does not fit
_LOOK_PAUSE_MAX_S: Final = 0.1  # between two looks into the queue behind a long task
_WORTH_READING_BACK_US: Final = 500  # a shorter queue is done before another executor has woken up
_ASK_AGAIN_S: Final = 1.0  # after a run was to be ended for its time, if nothing has come of it
_LOOK_AGAIN_S: Final = 0.001  # and after one that was not quite over its time
_KILL_AFTER_S: Final = 0.1  # a cancelled function that runs longer has its process killed


class Queues:
    """`extras`: what there is besides cores, in the units of `Request.extras`."""

    def __init__(self, cpus: int, extras: Mapping[str, int]) -> None:
        self.cpus = cpus
        self.extras = extras
        self.amounts = Amounts(extras)
        # one a core, and one more for light tasks, which must not wait for long functions
        self.executors = [Executor(i) for i in range(cpus + 1)]
        self._of_cores = self.executors[:-1]
        self.ready: deque[Task] = deque()
        self.light: deque[Task] = deque()  # ready ones that ask for no core: they run beside full cores
        self.special: dict[Request, deque[Task]] = {}  # ready ones that ask for more than cores
        self.n_light_programs = 0
        self.placed: dict[Run, Task] = {}  # at an executor or running as a program, cancelled ones included
        self.free_cpus = cpus
        self.free_cores = dict.fromkeys(range(cpus))
        self.owed = 0  # tasks asked back by the server while an executor's queue is read
        self._look_again_at: float | None = None
        self._limited: dict[Run, Task] = {}  # placed, and may run for so long only
        self._stop_programs_at: dict[Run, float] = {}
        self._stop_at: float | None = None  # when the next one of these may have run for too long

    def add(self, task: Task) -> None:
        self._line_of(task).append(task)

    def _line_of(self, task: Task) -> deque[Task]:
        if not task.cpus:
            return self.light
        if not task.kind.extras:
            return self.ready
        line = self.special.get(task.kind.request)
        if line is None:
            line = self.special[task.kind.request] = deque()
        return line

    # -- Starting -----------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[QueueEffect]:
        """Start what may start; O(started)."""
        effects: list[QueueEffect] = []
        self._kill_cancelled(now, effects)  # first: where nothing cancelled is left there is room again
        if self.ready or self.light or self.special:
            batches: dict[int, list[Task]] = {}
            self._start_light(now, effects, batches)
            if not self.special or not self._start_special(now, effects, batches):
                self._start_ready(now, effects, batches)
            effects += [RunOnExecutor(index, tasks) for index, tasks in batches.items()]
        self._look_again_at = None
        if not self.ready and self.free_cpus:
            self._relieve(now, effects)
        self._stop_at = None
        if self._limited:
            self._stop_late(now, effects)
        return effects

    def _start_ready(self, now: float, effects: list[QueueEffect], batches: dict[int, list[Task]]) -> None:
        ready = self.ready
        passed: list[Task] = []
        while ready and len(passed) < _LOOK_PAST:
            task = ready[0]
            if task.state != ws.READY:
                ready.popleft()
            elif task.kind.place == PROGRAM and task.cpus <= self.free_cpus:
                ready.popleft()
                self._start_program(task, now, effects)
            elif task.kind.place != PROGRAM and (executor := self.executor_for(task)) is not None:
                ready.popleft()
                self.queue(task, executor, now, effects)
                batches.setdefault(executor.index, []).append(task)
            elif task.cpus > 1 and task.blocked_since is None:
                task.blocked_since = now
            elif task.cpus > 1 and task.blocked_since is not None and now - task.blocked_since < _RESERVE_AFTER_S:
                passed.append(ready.popleft())
            else:
                break
        ready.extendleft(reversed(passed))

    def _start_light(self, now: float, effects: list[QueueEffect], batches: dict[int, list[Task]]) -> None:
        while self.light:
            task = self.light[0]
            if task.state != ws.READY:
                self.light.popleft()
            elif task.kind.place == PROGRAM and self.n_light_programs < LIGHT_PROGRAMS:
                self.light.popleft()
                self._start_program(task, now, effects)
            elif task.kind.place != PROGRAM and (executor := self.executor_for(task)) is not None:
                self.light.popleft()
                self.queue(task, executor, now, effects)
                batches.setdefault(executor.index, []).append(task)
            else:
                break

    def _start_special(self, now: float, effects: list[QueueEffect], batches: dict[int, list[Task]]) -> bool:
        """Start what asks for more than cores; True while cores are to be kept for such a task."""
        kept = self._kept_amounts(now)
        for request, line in list(self.special.items()):
            while line:
                task = line[0]
                if task.state != ws.READY:
                    line.popleft()
                    continue
                if any(kept.get(name, task) is not task for name, _ in task.kind.extras):
                    break
                if not self.amounts.has(task.kind.extras):
                    if task.blocked_since is None:
                        task.blocked_since = now
                    break
                executor = self.executor_for(task) if task.kind.place != PROGRAM else None
                if task.cpus > self.free_cpus or (executor is None and task.kind.place != PROGRAM):
                    if task.blocked_since is None:
                        task.blocked_since = now
                    if now - task.blocked_since >= _RESERVE_AFTER_S:
                        return True
                    break
                line.popleft()
                rather = executor.environment.gpus if executor is not None else ()
                task.gpus = self.amounts.take(task.kind.extras, rather)
                if executor is None:
                    self._start_program(task, now, effects)
                else:
                    self.queue(task, executor, now, effects)
                    batches.setdefault(executor.index, []).append(task)
            if not line:
                del self.special[request]
        return False

    def _kept_amounts(self, now: float) -> dict[str, Task]:
        """What is kept for tasks that have been overtaken for long, each for the one that has waited longest."""
        kept: dict[str, Task] = {}
        if len(self.special) > 1:
            heads = [line[0] for line in self.special.values() if line]
            waiting = [t for t in heads if t.blocked_since is not None and now - t.blocked_since >= _RESERVE_AFTER_S]
            for task in sorted(waiting, key=lambda task: task.blocked_since or now):
                for name, _ in task.kind.extras:
                    kept.setdefault(name, task)
        return kept

    def _start_program(self, task: Task, now: float, effects: list[QueueEffect]) -> None:
        task.state = ws.RUNNING
        self.placed[task.id, task.attempt] = task
        self.free_cpus -= task.cpus
        task.cores = self._take_cores(task.cpus)
        self.n_light_programs += not task.cpus
        if task.time_limit_s is not None:
            self._limited[task.id, task.attempt] = task
            self._stop_programs_at[task.id, task.attempt] = now + task.time_limit_s
        effects.append(RunProgram(task))

    def executor_for(self, task: Task) -> Executor | None:
        """An idle executor if the cores are free, else the shortest queue with room in its window.

        Rather one with the right environment; if need be, an idle one that has to be started again.
        """
        best: Executor | None = None
        another: Executor | None = None
        environment = task.kind.environment
        alone = bool(task.kind.extras)
        n_gpus = task.kind.n_gpus
        for executor in self._of_cores if task.cpus else self.executors:
            if not executor.alive:
                continue
            if not executor.queue:
                if self.free_cpus >= task.cpus:
                    if environment is None or (executor.environment == environment and not n_gpus):
                        return executor
                    if another is None or _is_like(executor.environment, task.cpus, n_gpus):
                        another = executor
            elif (
                task.cpus <= executor.cpus <= 1
                and not alone
                and self.has_room(executor, task)
                and (best is None or executor.backlog_us < best.backlog_us)
            ):
                best = executor
        return best or another

    def has_room(self, executor: Executor, task: Task) -> bool:
        """Whether one more task of this kind may wait behind those that are queued at an executor."""
        environment = task.kind.environment
        return (
            executor.alive
            and not executor.full
            and executor.cancelled_at is None
            and executor.backlog_us + task.kind.estimate_us <= EXECUTOR_WINDOW_US
            and len(executor.queue) < _QUEUE_TASKS
            and (environment is None or executor.environment == environment)
        )

    def queue(self, task: Task, executor: Executor, now: float, effects: list[QueueEffect]) -> None:
        if not executor.queue:
            executor.cpus = task.cpus
            executor.cores = self._take_cores(task.cpus, executor.index)
            self.free_cpus -= task.cpus
            executor.progress_at = now
            environment = task.kind.environment
            if environment is not None:
                if task.gpus:
                    environment = Environment(environment.threads, task.gpus)
                if executor.environment != environment:
                    executor.environment = environment
                    effects.append(RestartExecutor(executor.index, environment.threads, environment.gpus))
        task.cores = executor.cores if task.cpus else ()
        task.state = ws.QUEUED
        task.blocked_since = None
        task.estimate_us = task.kind.estimate_us
        task.executor = executor
        self.placed[task.id, task.attempt] = task
        if task.time_limit_s is not None:
            self._limited[task.id, task.attempt] = task
        executor.queue[task] = None
        executor.backlog_us += task.estimate_us

    # -- Ending -------------------------------------------------------------------------------------------------------

    def over(self, run: Run, now: float) -> None:
        """A run has ended, whether it was still wanted or not: its cores are free."""
        task = self.placed.pop(run, None)
        if task is None:  # ran in the loop
            return
        if self._limited:
            self._forget_limit(run)
        executor = task.executor
        if executor is None:
            self.free_cpus += task.cpus
            self.free_cores.update(dict.fromkeys(task.cores))
            self.n_light_programs -= not task.cpus
            self._give_amounts_back(task)
        else:
            executor.progress_at = now
            executor.pause_s = STUCK_S
            executor.full = False
            executor.stop_at = None
            self._unqueue(executor, task)

    def _unqueue(self, executor: Executor, task: Task) -> None:
        del executor.queue[task]
        task.executor = None
        executor.backlog_us -= task.estimate_us
        self._give_amounts_back(task)
        if not executor.queue:
            self.free_cpus += executor.cpus
            self.free_cores.update(dict.fromkeys(executor.cores))
            executor.cpus = 0
            executor.cores = ()
            executor.cancelled_at = None

    def _take_cores(self, count: int, rather: int = -1) -> tuple[int, ...]:
        """Free cores; for executors the one of their own number, so that they need not be moved."""
        if count == 1 and rather in self.free_cores:
            del self.free_cores[rather]
            return (rather,)
        cores = sorted(self.free_cores)[-count:] if count else []
        for core in cores:
            del self.free_cores[core]
        return tuple(cores)

    def _give_amounts_back(self, task: Task) -> None:
        if task.kind.extras:
            self.amounts.give_back(task.kind.extras, task.gpus)
            task.gpus = ()

    def take_back(self, runs: Iterable[Run]) -> list[Task]:
        """Take runs that did not begin back from their executors; returns those that are still wanted, READY again, or
        WAITING for what they were to follow.
        """
        taken = []
        for run in runs:
            task = self.placed.pop(run, None)
            if task is not None and task.executor is not None:
                self._forget_limit(run)
                self._unqueue(task.executor, task)
                if task.state == ws.QUEUED:
                    task.state = ws.WAITING if task.n_missing else ws.READY
                    taken.append(task)
        return taken

    def add_first(self, tasks: list[Task]) -> None:
        for task in reversed(tasks):
            self._line_of(task).appendleft(task)

    def not_sent(self, index: int, runs: Iterable[Run]) -> list[Task]:
        """Take back what an executor had no room for; returns those that are still wanted."""
        tasks = self.take_back(runs)
        self.executors[index].full = bool(self.executors[index].queue)
        return tasks

    def executor_lost(self, index: int, running: Run | None) -> tuple[Task | None, list[Task]]:
        """Returns the task a lost executor died in and those it had not begun, as far as they are still wanted."""
        executor = self.executors[index]
        executor.alive = False
        executor.full = False
        executor.stop_at = None
        tasks = self.take_back([(t.id, t.attempt) for t in executor.queue])
        died = [t for t in tasks if (t.id, t.attempt) == running]
        return (died[0] if died else None), [t for t in tasks if t not in died]

    # -- Giving back --------------------------------------------------------------------------------------------------

    def last_ready(self, count: int) -> list[Task]:
        """Take up to `count` tasks that would start last out of the ready queue."""
        taken: list[Task] = []
        for line in (self.ready, *self.special.values()):
            while line and len(taken) < count:
                task = line.pop()
                if task.state == ws.READY:
                    taken.append(task)
        return taken

    def longest_executor(self) -> Executor | None:
        """The executor with the most work behind what it runs."""
        waiting = [e for e in self.executors if e.n_spare()]
        return max(waiting, key=lambda e: e.backlog_us, default=None)

    def _relieve(self, now: float, effects: list[QueueEffect]) -> None:
        """With a core free and nothing ready, take tasks from behind a long one."""
        for executor in self.executors:
            spare = executor.n_spare()
            if not spare:
                continue
            stuck_at = executor.progress_at + STUCK_S
            look_at = executor.looked_at + executor.pause_s
            if now < look_at:
                at = look_at
            elif now >= stuck_at or executor.backlog_us >= _WORTH_READING_BACK_US:
                if now < stuck_at:
                    spare = (spare + 1) // 2
                effects.append(ReadBack(executor.index, spare))
                executor.looked_at = now
                at = now + executor.pause_s
                executor.pause_s = min(2 * executor.pause_s, _LOOK_PAUSE_MAX_S)  # what is claimed does not come back
            else:
                at = stuck_at
            self._look_again_at = min(self._look_again_at or at, at)

    # -- Cancelling ---------------------------------------------------------------------------------------------------

    def cancelled(self, task: Task, now: float) -> None:
        """A task at an executor is void; if it is running and goes on for long its process will be ended."""
        if task.executor is not None and task.executor.cancelled_at is None:
            task.executor.cancelled_at = now

    def _kill_cancelled(self, now: float, effects: list[QueueEffect]) -> None:
        for executor in self.executors:
            if executor.cancelled_at is None:
                continue
            first = next(iter(executor.queue))
            if not any(t.state == ws.OVER for t in executor.queue):
                executor.cancelled_at = None
            elif now >= executor.cancelled_at + _KILL_AFTER_S:
                if first.state == ws.OVER:
                    effects.append(KillExecutor(executor.index, (first.id, first.attempt), 0.0, "cancelled"))
                executor.cancelled_at = now

    # -- Limits -------------------------------------------------------------------------------------------------------

    def stop(self, task: Task, after_s: float, why: str) -> list[QueueEffect]:
        """End a task that is placed and has run for so long."""
        if (task.id, task.attempt) not in self.placed:
            return []
        if task.executor is None:
            return [StopProgram(task.id, task.attempt, why)]
        return [KillExecutor(task.executor.index, (task.id, task.attempt), after_s, why)]

    def _stop_late(self, now: float, effects: list[QueueEffect]) -> None:
        """See which runs have reached their time limit. When a function began its executor knows best."""
        for run, task in self._limited.items():
            limit_s = task.time_limit_s
            executor = task.executor
            assert limit_s is not None
            if executor is None:
                at = self._stop_programs_at[run]
            elif task is not next(iter(executor.queue)):
                continue  # the one before it is running
            else:
                at = executor.stop_at or executor.progress_at + limit_s
            if now >= at:
                effects += self.stop(task, limit_s, f"time limit of {limit_s:g} s exceeded")
                at = now + _ASK_AGAIN_S
                if executor is None:
                    self._stop_programs_at[run] = at
                else:
                    executor.stop_at = at
            self._stop_at = min(self._stop_at or at, at)

    def still_running(self, index: int, run: Run, left_s: float, now: float) -> None:
        """What was to be ended has begun later than was thought."""
        task = self.placed.get(run)
        if task is not None and task.executor is not None and task.executor.index == index:
            task.executor.stop_at = now + max(left_s, _LOOK_AGAIN_S)

    def _forget_limit(self, run: Run) -> None:
        self._limited.pop(run, None)
        self._stop_programs_at.pop(run, None)

    def read_all_back(self) -> list[QueueEffect]:
        """Take back whatever has not begun."""
        return [ReadBack(e.index, len(e.queue)) for e in self.executors if len(e.queue) > 1]

    def next_deadline(self) -> float | None:
        deadlines = [e.cancelled_at + _KILL_AFTER_S for e in self.executors if e.cancelled_at is not None]
        deadlines += [at for at in (self._look_again_at, self._stop_at) if at is not None]
        return min(deadlines, default=None)


def _is_like(environment: Environment, threads: int, n_gpus: int) -> bool:
    """Whether a process with this environment could do, if the gpus are free that it has."""
    return environment.threads == threads and len(environment.gpus) == n_gpus
