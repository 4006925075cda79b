"""From when to when each worker was there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from loom.lore.model import Worker
from loom.trace.reader import TraceFile, rows_of
from loom.trace.records import AnyRecord, CheckpointSaved, ObjectFetched, Sampled, TaskEndedBadly, TasksRan

_SILENCE_US: Final = 1_500_000  # a worker writes a sample each second: one that is silent for longer is not there


class Presence:
    """Takes files in, then completes what the server wrote down of its workers.

    A server that stops takes its workers with it and writes nothing of them: they were there until their last record,
    or until the last one of the whole run, where that comes so soon that their next sample was not due yet.
    """

    def __init__(self) -> None:
        self._first_us: dict[int, int] = {}  # by position of the worker
        self._last_us: dict[int, int] = {}
        self._end_us: dict[int, int] = {}  # by incarnation of the server

    def take(self, position: int | None, file: TraceFile) -> None:
        """`position`: of the worker whose file it is; None: a server's."""
        first, last = _bounds(file)
        incarnation = file.opened.incarnation
        self._end_us[incarnation] = max(last, self._end_us.get(incarnation, last))
        if position is not None:
            self._first_us[position] = min(first, self._first_us.get(position, first))
            self._last_us[position] = max(last, self._last_us.get(position, last))

    def complete(self, workers: Sequence[Worker], position_of: Mapping[tuple[int, int], int]) -> None:
        """`position_of`: by incarnation and number."""
        for (incarnation, _), position in position_of.items():
            worker = workers[position]
            begins = [one for one in (worker.joined_us, self._first_us.get(position)) if one is not None]
            worker.joined_us = min(begins, default=None)
            last = self._last_us.get(position)
            if last is None:
                continue
            due = last + _SILENCE_US
            left = worker.left_us
            # after its last record nobody has heard of it, even if the server noticed only later
            worker.left_us = max(last, min(due, self._end_us[incarnation] if left is None else left))


def _bounds(file: TraceFile) -> tuple[int, int]:
    """The first and the last time in a file, on the wall clock."""
    first = last = file.opened.monotonic_us
    for record in file.records:
        begun, ended = _span(record)
        if ended:
            first, last = min(first, begun), max(last, ended)
    return file.wall_us(first), file.wall_us(last)


def _span(record: AnyRecord) -> tuple[int, int]:
    """When what a record tells of began and ended; zeros where it has no time."""
    match record:
        case TasksRan():
            times = [(begun, begun + duration) for _, _, _, begun, duration, _ in rows_of(record)]
            return min((begun for begun, _ in times), default=0), max((end for _, end in times), default=0)
        case TaskEndedBadly() | ObjectFetched() | CheckpointSaved():
            return record.begun_us, record.begun_us + record.duration_us
        case Sampled():
            return record.at_us, record.at_us
        case _:
            at_us = getattr(record, "at_us", 0)
            return at_us, at_us
