"""The worker's executor processes: tasks of the core become their messages, their results become its events."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from loom.core.worker_events import (
    Done,
    ExecutorLost,
    ExecutorReady,
    Failed,
    NotRun,
    NotSent,
    Redirected,
    StillRunning,
    WorkerEvent,
)
from loom.core.worker_tasks import Run, Task
from loom.data.buffers import FileSegment, Segment, StoredFile, cut_segment
from loom.data.pack import rebuild
from loom.executors.environment import pin_threads
from loom.executors.memory import MemoryWatch
from loom.executors.orphans import Orphans
from loom.executors.processes import ExecutorProcess
from loom.ids import number_of, run_number
from loom.limits import INLINE_RESULT_BYTES, MAX_HANDOVER_FDS
from loom.messages import (
    RESULT,
    ErrorResult,
    ExecutorBatch,
    ExecutorInput,
    ExecutorLog,
    ExecutorResult,
    ExecutorTask,
    InputsMissing,
    LargeResult,
    RedirectResult,
    SmallResult,
)
from loom.plugins.chosen import Plugins
from loom.resources import MEM
from loom.trace.writer import now_us
from loom.worker.hardware import Hardware
from loom.worker.inline import done_of
from loom.worker.store import Store
from loom.worker.tracing import WorkerTrace

_log = logging.getLogger("loom.task")

_FUNCTION_FIRST: Final = frozenset({"loom/py/call", "loom/py_call"})  # types whose first input executors keep
# Tasks in one message are claimed together and cannot be read back one by one: so much work may share a message, and
# nothing of a kind that was once seen to take long.
_MESSAGE_US: Final = 500
_LONG_US: Final = 100_000
_RESTART_S: Final = 1.0  # pause before another start of a process that died before it ran anything


class ExecutorPool:
    """`post` takes events for the core; `wanted` says whether a result of a run is still to be stored."""

    def __init__(
        self,
        hardware: Hardware,
        store: Store,
        store_directory: str,
        orphans: Orphans,
        post: Callable[[WorkerEvent | Done], None],
        wanted: Callable[[int, int], bool],
        trace: WorkerTrace,
        plugins: Plugins,
        memory: MemoryWatch,
        spare_directory: str,
    ) -> None:
        count = hardware.cpus + 1
        self._started = [False] * count  # processes beyond the cores of the machine, and the last: when they are needed
        self._hardware = hardware
        self._store = store
        self._post = post
        self._wanted = wanted
        self._trace = trace
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self._serials = itertools.count(1)
        self._given: list[dict[int, Task]] = [{} for _ in range(count)]  # by serial
        self._known: list[set[int]] = [set() for _ in range(count)]  # objects that the process keeps
        self._pinned: list[tuple[int, ...]] = [()] * count  # slots whose cores the process has; (): not pinned yet
        self._idle_deaths = [0] * count
        self._killed: set[int] = set()  # executors that the core wanted to end
        self._stopped = False
        self._processes = [
            ExecutorProcess(
                i,
                store_directory,
                self._loop,
                orphans,
                self._on_results,
                self._on_lost,
                plugins.options(),
                spare_directory,
            )
            for i in range(count)
        ]

    def start(self) -> None:
        for index in range(min(self._hardware.cpus, len(os.sched_getaffinity(0)))):
            self._started[index] = True
            self._processes[index].start(self._hardware.variables(1, ()))

    def restart(self, index: int, threads: int, gpus: tuple[int, ...]) -> None:
        """Give an executor that has nothing to do a process with another environment."""
        assert not self._given[index]
        self._hardware.leave_home()  # which the process would be kept to as well
        self._known[index].clear()
        self._pinned[index] = ()
        process, variables = self._processes[index], self._hardware.variables(threads, gpus)
        begin = process.restart if self._started[index] else process.start
        self._started[index] = True
        try:
            begin(variables)
        except OSError as error:  # no more processes or descriptors now
            self._on_not_started(index, error)

    def _start(self, index: int) -> bool:
        """Start a process for the first time. The last executor has only light tasks, and the worker's environment."""
        self._started[index] = True
        try:
            self._processes[index].start(self._hardware.variables(1 if index < self._hardware.cpus else 0, ()))
        except OSError as error:
            self._on_not_started(index, error)
            return False
        return True

    def _on_not_started(self, index: int, error: OSError) -> None:
        _log.error("executor %d cannot be started, it is tried again: %s", index, error)
        self._post(ExecutorLost(index, None, "the function's process could not be started"))
        self._loop.call_later(_RESTART_S, self._restart, index)

    def stop(self) -> None:
        self._stopped = True
        for process in self._processes:
            process.stop()

    # -- Giving tasks -------------------------------------------------------------------------------------------------

    def send(self, index: int, tasks: Sequence[Task]) -> None:
        """Queue tasks; those there is no room for come back as NotSent."""
        self._hardware.leave_home()
        if not self._started[index] and not self._start(index):
            return
        cores = tasks[0].cores  # what is queued behind it has the same, or is light
        if cores and cores != self._pinned[index]:
            self._pin(index, cores)
        groups = _messages(tasks)
        for position, group in enumerate(groups):
            if not self._send_group(index, group):
                rest = [task for later in groups[position:] for task in later]
                self._post(NotSent(index, [(t.id, t.attempt) for t in rest]))
                return

    def _pin(self, index: int, slots: tuple[int, ...]) -> None:
        """The process keeps its cores until a task has others: streams of one-core tasks cost nothing."""
        pid = self._processes[index].pid
        if pid is not None:
            self._pinned[index] = slots
            if cores := self._hardware.core_ids(slots):
                pin_threads(pid, cores)

    def _send_group(self, index: int, group: Sequence[Task]) -> bool:
        fds: list[int] = []
        given = self._given[index]
        if self._trace.on and not given:
            self._trace.executor_free(index, now_us())
        brought: list[int] = []  # functions that the process gets with this
        batch = []
        for task in group:
            n_fds, n_brought = len(fds), len(brought)
            try:
                inputs = self._inputs(index, task, fds, brought)
            except OSError as error:  # no more descriptors, or a file is gone
                for descriptor in fds[n_fds:]:
                    os.close(descriptor)
                del fds[n_fds:]
                self._known[index].difference_update(brought[n_brought:])
                del brought[n_brought:]
                text = f"the inputs could not be given to the function: {error}"
                if self._trace.on:
                    self._trace.ended_badly(task, now_us(), 0, text)
                self._post(Failed(task.id, task.attempt, text))
                continue
            serial = next(self._serials)
            given[serial] = task
            function = task.inputs[0] if task.inputs else 0
            number, attempt = number_of(task.id), run_number(task.attempt)
            batch.append(ExecutorTask(serial, number, attempt, task.kind.symbol, task.config, function, inputs))
        if not batch or self._processes[index].send(ExecutorBatch(batch), fds):
            for sent in batch:
                if given[sent.serial].kind.extras:
                    self._watch_memory(index, sent.serial)
            return True
        for descriptor in fds:
            os.close(descriptor)
        for sent in batch:
            del given[sent.serial]
        self._known[index].difference_update(brought)
        return False

    def _watch_memory(self, index: int, serial: int) -> None:
        task, process = self._given[index][serial], self._processes[index]
        limit_bytes = dict(task.kind.extras).get(MEM)
        if limit_bytes is not None and process.pid is not None:
            run = (task.id, task.attempt)
            self._memory.begin(run, limit_bytes, process.pid, lambda: process.started_at(serial) is not None)

    def set_crowded(self, crowded: bool) -> None:
        """Whether large results are to go to disk."""
        for process in self._processes:
            process.set_crowded(crowded)

    def _inputs(self, index: int, task: Task, fds: list[int], brought: list[int]) -> list[bytes | int | ExecutorInput]:
        keep = task.kind.symbol in _FUNCTION_FIRST
        first = len(fds)
        inputs: list[bytes | int | ExecutorInput] = []
        for object_id in task.inputs:
            if keep and object_id in self._known[index]:
                inputs.append(object_id)
            elif object_id not in self._store:
                inputs.append(-self._serial_of(index, object_id))
            else:
                inputs.append(self._input(object_id, keep, fds))
                if keep:
                    self._known[index].add(object_id)
                    brought.append(object_id)
            keep = False
        if len(fds) - first > MAX_HANDOVER_FDS:
            self._put_together(inputs, fds, first)
        return inputs

    def _serial_of(self, index: int, object_id: int) -> int:
        """Of the task that makes this, which was given to the process before: mostly the last one."""
        given = self._given[index]
        return next((serial for serial in reversed(given) if given[serial].id == object_id), 0)

    @staticmethod
    def _put_together(inputs: list[bytes | int | ExecutorInput], fds: list[int], first: int) -> None:
        """More files than a message can carry: copy what they give to the task into one, which lives as long as it is
        open.
        """
        together = os.memfd_create("loom-inputs", os.MFD_CLOEXEC)
        fds.append(together)
        end = 0
        for given in inputs:
            if isinstance(given, ExecutorInput):
                parts = []
                for place, offset, size_bytes in given.parts:
                    parts.append((first, end, size_bytes))
                    while size_bytes:
                        copied = os.sendfile(together, fds[place], offset, size_bytes)
                        if not copied:
                            raise OSError(errno.EIO, "a file of the store is shorter than it was")
                        offset, end, size_bytes = offset + copied, end + copied, size_bytes - copied
                given.parts = parts
        for descriptor in fds[first:-1]:
            os.close(descriptor)
        fds[first:] = [together]

    def _input(self, object_id: int, keep: bool, fds: list[int]) -> bytes | ExecutorInput:
        found = self._store.lookup(object_id)
        assert found is not None, f"input {object_id:#x} is not here"
        if isinstance(found, bytes):
            return ExecutorInput(object_id, found, b"", [], True) if keep else found
        header, segments = found
        return ExecutorInput(object_id, None, header, _open_parts(segments, fds), keep)

    def read_back(self, index: int, count: int) -> list[Run]:
        """Runs taken back from the process's queue."""
        runs = []
        for taken in self._processes[index].read_back(count):
            task = self._given[index].pop(taken.serial)
            runs.append((task.id, task.attempt))
            self._memory.end((task.id, task.attempt))
            for given in taken.inputs:  # it may have been the first to bring a function
                if isinstance(given, ExecutorInput) and given.keep:
                    self._known[index].discard(given.object)
        return runs

    def kill_if_running(self, index: int, run: Run, after_s: float, why: str) -> None:
        """End the process if it has been running this for so long: ExecutorLost follows once all of it is gone. If it
        has not, StillRunning is the answer. Nothing where it does not have it any more.
        """
        process = self._processes[index]
        process.poll()
        given = self._given[index]
        serial = next((serial for serial, task in given.items() if (task.id, task.attempt) == run), None)
        if serial is None:
            return
        began = process.started_at(serial)
        ran_s = time.monotonic() - began if began is not None else 0.0
        if ran_s < after_s or (began is None and serial != next(iter(given))):
            self._post(StillRunning(index, run, max(0.0, after_s - ran_s)))
        else:
            self._killed.add(index)
            process.kill(serial, why)

    # -- Results ------------------------------------------------------------------------------------------------------

    def _on_results(self, index: int, results: list[ExecutorResult | ExecutorLog]) -> None:
        ended: ExecutorResult | None = None
        for result in results:
            if isinstance(result, ExecutorLog):
                _log.log(result.level, "task %d: %s", result.number, result.text)
                continue
            task = self._given[index].pop(result.serial, None)
            if task is not None:
                if task.kind.extras:
                    self._memory.end((task.id, task.attempt))
                if self._trace.on and ended is not None and isinstance(result, RedirectResult):
                    self._trace.executor_free(index, _end_us(ended))
                self._on_result(index, task, result)
            ended = result
        if self._trace.on and ended is not None:
            self._trace.executor_free(index, _end_us(ended))
        self._idle_deaths[index] = 0

    def _on_result(self, index: int, task: Task, result: ExecutorResult) -> None:
        if not self._wanted(task.id, task.attempt):
            if isinstance(result, LargeResult) and result.file:
                StoredFile(result.file, 0)  # removes it
            if self._trace.on and not isinstance(result, RedirectResult | InputsMissing):
                self._trace.ended_badly(task, result.begun_us, result.duration_us, "cancelled")
            self._post(Failed(task.id, task.attempt, "cancelled"))
            return
        match result:
            case SmallResult():
                packed = result.packed
                self._store.put_packed(task.id, packed)
                inline = packed if task.flags & RESULT and len(packed) <= INLINE_RESULT_BYTES else None
                if self._trace.on:
                    self._trace.ran(task, result.begun_us, result.duration_us, result.size_bytes)
                self._post(Done(task.id, task.attempt, result.size_bytes, result.length, result.duration_us, inline))
            case LargeResult():
                self._on_large_result(task, result)
            case ErrorResult():
                self._store.heard(result.error)
                if self._trace.on:
                    self._trace.ended_badly(task, result.begun_us, result.duration_us, result.error)
                self._post(Failed(task.id, task.attempt, result.error))
            case RedirectResult():
                if self._trace.on:
                    self._trace.redirected(task, index)
                self._post(Redirected(task.id, task.attempt, result.chunk))
            case InputsMissing():
                self._known[index].difference_update(result.objects)
                if all(object_id in self._store for object_id in task.inputs):
                    self._send_again(index, task)
                else:
                    self._post(NotRun(index, [(task.id, task.attempt)]))

    def _on_large_result(self, task: Task, result: LargeResult) -> None:
        try:
            value = rebuild(result.header, self._segments(task, result))
            self._store.put(task.id, value)
        except (OSError, ValueError) as error:
            text = f"the result could not be stored: {self._store.error_text(error)}"
            if self._trace.on:
                self._trace.ended_badly(task, result.begun_us, result.duration_us, text)
            self._post(Failed(task.id, task.attempt, text))
        else:
            if self._trace.on:
                self._trace.ran(task, result.begun_us, result.duration_us, result.size_bytes)
            self._post(done_of(task, value, result.duration_us))

    def _segments(self, task: Task, result: LargeResult) -> list[Segment]:
        file = StoredFile(result.file, os.stat(result.file).st_size) if result.file else None
        segments: list[Segment] = []
        for part in result.parts:
            if part.input < 0:
                assert file is not None
                segments.append(FileSegment(file, part.offset, part.size_bytes))
            else:
                found = self._store.lookup(task.inputs[part.input])
                assert isinstance(found, tuple), "a part of a small input is copied"
                segments.append(cut_segment(found[1][part.index], part.offset, part.offset + part.size_bytes))
        return segments

    def _send_again(self, index: int, task: Task) -> None:
        """The process does not have an input any more; this cannot fail for want of room twice in a row."""
        if not self._send_group(index, [task]):
            self._post(NotSent(index, [(task.id, task.attempt)]))

    # -- Deaths -------------------------------------------------------------------------------------------------------

    def _on_lost(self, index: int, running: int | None, unfinished: list[int], story: str) -> None:
        given, self._given[index] = self._given[index], {}
        for task in given.values():
            self._memory.end((task.id, task.attempt))
        self._known[index].clear()
        self._pinned[index] = ()
        died_in = given.get(running) if running is not None else None
        run = (died_in.id, died_in.attempt) if died_in is not None else None
        if self._trace.on and died_in is not None:
            self._trace.died(died_in, index, story)
        self._post(ExecutorLost(index, run, story))
        if died_in is None and index not in self._killed:
            self._idle_deaths[index] += 1
            _log.error("executor %d: %s while it ran no task", index, story)
        self._killed.discard(index)
        delay_s = _RESTART_S if self._idle_deaths[index] > 1 else 0.0
        self._loop.call_later(delay_s, self._restart, index)

    def _restart(self, index: int) -> None:
        if self._stopped:
            return
        self._hardware.leave_home()
        try:
            self._processes[index].start()
        except OSError as error:  # no more processes or descriptors now
            _log.error("executor %d cannot be started, it is tried again: %s", index, error)
            self._loop.call_later(_RESTART_S, self._restart, index)
            return
        self._post(ExecutorReady(index))


def _end_us(result: ExecutorResult) -> int:
    """When its task ended, or was found to have."""
    return now_us() if isinstance(result, RedirectResult | InputsMissing) else result.begun_us + result.duration_us


def _messages(tasks: Sequence[Task]) -> list[list[Task]]:
    """Cut tasks into messages by the work in them."""
    groups: list[list[Task]] = []
    room_us = 0
    for task in tasks:
        room_us -= task.estimate_us
        if room_us < 0 or task.kind.longest_us > _LONG_US:
            groups.append([task])
            room_us = _MESSAGE_US - task.estimate_us
        else:
            groups[-1].append(task)
    return groups


def _open_parts(segments: Sequence[Segment], fds: list[int]) -> list[tuple[int, int, int]]:
    """Descriptors for the files of a large object, each file once, and where in them its segments are."""
    places: dict[int, int] = {}
    parts = []
    for segment in segments:
        assert isinstance(segment, FileSegment), "large objects are in files"
        place = places.get(id(segment.file))
        if place is None:
            place = places[id(segment.file)] = len(fds)
            fds.append(segment.file.open())
        parts.append((place, segment.offset, segment.size))
    return parts
