"""What a worker writes down of its tasks, objects and processes while a trace is on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from loom.core.worker_events import Done, Failed, NotInline
from loom.core.worker_tasks import Task, WorkerKind
from loom.trace.records import (
    LOOP_LANE,
    RAN,
    CheckpointSaved,
    KindNamed,
    ObjectFetched,
    Sampled,
    TaskEndedBadly,
    TasksRan,
)
from loom.trace.writer import TraceWriter, now_us, opened_now
from loom.worker.usage import family_usage

_pack: Final = RAN.pack
_SAMPLE_S: Final = 1.0


class WorkerTrace:
    """`on` says whether a trace is written: who has something for it looks there first, and then calls.

    `held` are the objects that the worker holds, with their sizes: looked at once a second.
    """

    def __init__(self, held: Mapping[int, int]) -> None:
        self.on = False
        self._held = held
        self._writer: TraceWriter | None = None
        self._kinds: dict[WorkerKind, int] = {}  # those named in the file
        self._ran = bytearray()  # rows of tasks since the last flush
        self._fetches: dict[int, tuple[int, int]] = {}  # objects on their way: from where, since when
        self._free_us: dict[int, int] = {}  # executors: what runs there now began then
        self._timer: asyncio.TimerHandle | None = None

    # -- On and off ---------------------------------------------------------------------------------------------------

    def start(
        self, directory: str, worker: int, name: str, cpus: int, extras: list[tuple[str, int]], incarnation: int
    ) -> None:
        """Write below this directory from now on; where that is done already, nothing changes. Empty: no more."""
        if self._writer is not None and self._writer.directory == directory and self._writer.is_there():
            return
        self.stop()
        if not directory:
            return
        opened = opened_now("worker", worker, name, cpus, extras, incarnation)
        self._writer = TraceWriter(directory, f"worker-{worker}-{name}", opened)
        self.on = True
        self._sample()

    def stop(self) -> None:
        """Write no more; nothing where nothing is written."""
        if self._writer is not None:
            self._put_ran(self._writer)
            self._writer.close()
            self._writer = None
        self.on = False
        self._kinds.clear()
        self._fetches.clear()
        self._free_us.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def flush(self) -> None:
        """Before the server hears of what has been written down."""
        if self._writer is not None:
            self._put_ran(self._writer)
            self._writer.flush()
            if self._writer.broken:
                self.stop()

    # -- Tasks --------------------------------------------------------------------------------------------------------

    def ran(self, task: Task, begun_us: int, duration_us: int, size_bytes: int) -> None:
        """A task ended well."""
        kind = self._kinds.get(task.kind)
        if kind is None:
            kind = self._number(task.kind)
        cores = task.cores
        self._ran += _pack(task.id, kind, cores[0] if cores else LOOP_LANE, begun_us, duration_us, size_bytes)

    def _put_ran(self, writer: TraceWriter) -> None:
        """One record for all of them."""
        if self._ran:
            writer.add(TasksRan(bytes(self._ran)))
            self._ran.clear()

    def ended_badly(self, task: Task, begun_us: int, duration_us: int, error: str) -> None:
        assert self._writer is not None
        kind = self._number(task.kind)
        lane = task.cores[0] if task.cores else LOOP_LANE
        self._writer.add(TaskEndedBadly(task.id, kind, lane, begun_us, max(0, duration_us), _text(error)))

    def ran_inline(self, task: Task, outcome: Done | Failed | NotInline) -> None:
        """A task has just run in the loop, or was to."""
        if isinstance(outcome, Done):
            self.ran(task, now_us() - outcome.duration_us, outcome.duration_us, outcome.size_bytes)
        elif isinstance(outcome, Failed):
            self.ended_badly(task, now_us(), 0, outcome.error)

    def _number(self, kind: WorkerKind) -> int:
        """The kind's number in this file, where it is named before that is used."""
        assert self._writer is not None
        number = self._kinds.get(kind)
        if number is not None:
            return number
        number = self._kinds[kind] = len(self._kinds)
        request = kind.request
        self._writer.add(KindNamed(number, kind.symbol, kind.label, request.cpus, list(request.extras)))
        return number

    def executor_free(self, executor: int, at_us: int) -> None:
        """It could begin another task then: it was sent its first one, or had ended one."""
        self._free_us[executor] = at_us

    def redirected(self, task: Task, executor: int) -> None:
        """A function has returned a plan: it ended well, without an object."""
        begun_us, until_us = self._free_us.get(executor), now_us()
        self._free_us[executor] = until_us
        if begun_us is not None:
            self.ran(task, begun_us, max(0, until_us - begun_us), 0)

    def died(self, task: Task, executor: int, story: str) -> None:
        """A function took its process down."""
        until_us = now_us()
        begun_us = self._free_us.get(executor, until_us)
        self.ended_badly(task, begun_us, until_us - begun_us, story)

    def program_ended(self, task: Task, duration_us: int, size_bytes: int, error: str) -> None:
        """`error` is empty where it ended well."""
        begun_us = now_us() - duration_us
        if error:
            self.ended_badly(task, begun_us, duration_us, error)
        else:
            self.ran(task, begun_us, duration_us, size_bytes)

    # -- Objects ------------------------------------------------------------------------------------------------------

    def fetching(self, source: int, objects: Iterable[int]) -> None:
        """These were asked for."""
        begun_us = now_us()
        for object_id in objects:
            self._fetches[object_id] = source, begun_us

    def fetched(self, object_id: int, size_bytes: int) -> None:
        assert self._writer is not None
        found = self._fetches.pop(object_id, None)
        if found is not None:
            source, begun_us = found
            self._writer.add(ObjectFetched(object_id, source, size_bytes, begun_us, now_us() - begun_us))

    def not_fetched(self, object_id: int) -> None:
        self._fetches.pop(object_id, None)

    def checkpoint_saved(self, object_id: int, size_bytes: int, begun_us: int, error: str) -> None:
        """Now, after work since `begun_us` (`trace.writer.now_us`); `error` is empty where the file is in place."""
        assert self._writer is not None
        self._writer.add(CheckpointSaved(object_id, size_bytes, begun_us, now_us() - begun_us, _text(error)))

    # -- The machine --------------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        """Once a second, which also writes out what no message to the server has."""
        assert self._writer is not None
        usage = family_usage()
        store_bytes = sum(self._held.values())
        self._writer.add(Sampled(now_us(), usage.cpu_us, usage.memory_bytes, store_bytes, len(self._held)))
        self.flush()
        if self.on:
            self._timer = asyncio.get_running_loop().call_later(_SAMPLE_S, self._sample)


def _text(error: str) -> str:
    """As it can be encoded: names of files in it may hold anything."""
    return error.encode("utf-8", "backslashreplace").decode("utf-8")
