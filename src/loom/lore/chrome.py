"""A report in the Trace Event format, for Perfetto (ui.perfetto.dev) and chrome://tracing.

A process is a worker, a thread one of its cores; what runs in a worker's loop and what it fetches have threads of their
own, several where they overlap, because events of one thread must not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from loom import ids
from loom.lore.figures import processors_in_use
from loom.lore.model import OUTCOMES, UNKNOWN, Report
from loom.lore.timeline import Packer
from loom.trace.records import LOOP_LANE

_LOOP_THREADS: Final = 1 << 17  # above every core
_FETCH_THREADS: Final = 1 << 18

Event = dict[str, Any]


def chrome_trace(report: Report) -> bytes:
    events = [*_tasks(report), *_transfers(report), *_samples(report)]
    used = {(event["pid"], event["tid"]) for event in events if "tid" in event}
    return msgspec.json.encode(
        {
            "traceEvents": [*_names(report, used), *events],
            "displayTimeUnit": "ms",
            "otherData": {"begun_wall_us": report.begun_wall_us},
        }
    )


def _pid(worker: int) -> int:
    return worker + 1  # 0 is the system's in some viewers


def _names(report: Report, used: set[tuple[int, int]]) -> Iterator[Event]:
    for number, worker in enumerate(report.workers):
        pid = _pid(number)
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": worker.name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": number}}
        threads = {(pid, core + 1) for core in range(worker.cpus)} | {one for one in used if one[0] == pid}
        for _, tid in sorted(threads):
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": _thread_name(tid)}}
            yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _thread_name(tid: int) -> str:
    if tid >= _FETCH_THREADS:
        return f"transfers to here {tid - _FETCH_THREADS + 1}"
    if tid >= _LOOP_THREADS:
        return f"loop {tid - _LOOP_THREADS + 1}"
    return f"core {tid - 1}"


def _tasks(report: Report) -> Iterator[Event]:
    tasks = report.tasks
    packers: dict[int, Packer] = {}
    for row in range(len(tasks)):
        worker, lane, begun, duration = (
            tasks.workers[row],
            tasks.lanes[row],
            tasks.begun_us[row],
            tasks.durations_us[row],
        )
        if lane == LOOP_LANE:
            tid = _LOOP_THREADS + packers.setdefault(worker, Packer()).place(begun, begun + duration)
        else:
            tid = lane + 1
        yield {
            "ph": "X",
            "name": report.name_of(tasks.labels[row], tasks.symbols[row]),
            "cat": report.groups[tasks.groups[row]],
            "pid": _pid(worker),
            "tid": tid,
            "ts": begun,
            "dur": duration,
            "args": {
                "id": ids.number_of(tasks.ids[row]),
                "session": ids.session_of(tasks.ids[row]),
                "symbol": report.symbols[tasks.symbols[row]],
                "cpus": tasks.cpus[row],
                "size_bytes": tasks.sizes_bytes[row],
                "outcome": OUTCOMES[tasks.outcomes[row]],
            },
        }


def _transfers(report: Report) -> Iterator[Event]:
    packers: dict[int, Packer] = {}
    for moved in report.transfers:
        place = packers.setdefault(moved.target, Packer()).place(moved.begun_us, moved.begun_us + moved.duration_us)
        source = "unknown" if moved.source == UNKNOWN else report.workers[moved.source].name
        yield {
            "ph": "X",
            "name": f"from {source}",
            "cat": "transfer",
            "pid": _pid(moved.target),
            "tid": _FETCH_THREADS + place,
            "ts": moved.begun_us,
            "dur": moved.duration_us,
            "args": {"id": ids.number_of(moved.object), "size_bytes": moved.size_bytes},
        }


def _samples(report: Report) -> Iterator[Event]:
    for number, samples in enumerate(report.samples):
        used = processors_in_use(samples.at_us, samples.cpu_us)
        for at, cpus, memory, store in zip(samples.at_us, used, samples.memory_bytes, samples.store_bytes, strict=True):
            counter = {"ph": "C", "pid": _pid(number), "ts": at}
            yield {**counter, "name": "processors used", "args": {"processors": round(cpus, 3)}}
            yield {**counter, "name": "memory", "args": {"memory_bytes": memory, "store_bytes": store}}
