"""A report as JSON, for programs. docs/reports.md describes the keys."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from loom import ids
from loom.lore import figures
from loom.lore.model import OUTCOMES, UNKNOWN, Report
from loom.trace.records import LOOP_LANE

VERSION: Final = 1


def as_json(report: Report) -> bytes:
    return msgspec.json.encode(_document(report))


def _document(report: Report) -> dict[str, Any]:
    totals = figures.totals(report)
    names = [worker.name for worker in report.workers]
    return {
        "version": VERSION,
        "begun_wall_us": report.begun_wall_us,
        "span_us": report.span_us,
        "n_tasks": totals.n_tasks,
        "n_cores": totals.n_cores,
        "n_failed": totals.n_failed,
        "busy_core_us": totals.busy_us,
        "utilisation": totals.utilisation,
        "notes": report.notes,
        "workers": [
            {
                "name": worker.name,
                "number": worker.number,
                "cpus": worker.cpus,
                "extras": dict(worker.extras),
                "joined_us": worker.joined_us,
                "left_us": worker.left_us,
            }
            for worker in report.workers
        ],
        "tasks": _tasks(report, names),
        "labels": [
            {
                "label": report.groups[one.group],
                "runs": one.n_runs,
                "median_us": one.median_us,
                "p95_us": one.p95_us,
                "sum_us": one.sum_us,
                "core_us": one.core_us,
                "size_bytes": one.size_bytes,
                "failures": one.n_failures,
            }
            for one in figures.by_group(report)
        ],
        "failures": [
            {
                "session": ids.session_of(one.id),
                "id": ids.number_of(one.id),
                "label": report.labels[one.label],
                "symbol": report.symbols[one.symbol],
                "worker": one.worker,
                "at_us": one.at_us,
                "error": one.error,
            }
            for one in report.failures
        ],
        "transfers": {
            "session": [ids.session_of(one.object) for one in report.transfers],
            "id": [ids.number_of(one.object) for one in report.transfers],
            "source": [None if one.source == UNKNOWN else names[one.source] for one in report.transfers],
            "target": [names[one.target] for one in report.transfers],
            "size_bytes": [one.size_bytes for one in report.transfers],
            "begun_us": [one.begun_us for one in report.transfers],
            "duration_us": [one.duration_us for one in report.transfers],
        },
        "checkpoints": [
            {
                "session": ids.session_of(one.object),
                "id": ids.number_of(one.object),
                "worker": names[one.worker],
                "size_bytes": one.size_bytes,
                "begun_us": one.begun_us,
                "duration_us": one.duration_us,
                "error": one.error,
            }
            for one in report.checkpoints
        ],
        "samples": [
            {
                "worker": name,
                "at_us": samples.at_us,
                "cpu_us": samples.cpu_us,
                "memory_bytes": samples.memory_bytes,
                "store_bytes": samples.store_bytes,
                "objects": samples.n_objects,
            }
            for name, samples in zip(names, report.samples, strict=True)
        ],
        "plan": {
            "nodes": [{"label": report.groups[group], "tasks": n} for group, n in report.plan.counts.items()],
            "edges": [
                {"from": report.groups[a], "to": report.groups[b], "inputs": n}
                for (a, b), n in report.plan.edges.items()
            ],
        },
    }


def _tasks(report: Report, names: list[str]) -> dict[str, list[Any]]:
    tasks = report.tasks
    return {
        "session": [ids.session_of(task) for task in tasks.ids],
        "id": [ids.number_of(task) for task in tasks.ids],
        "label": [report.labels[label] for label in tasks.labels],
        "symbol": [report.symbols[symbol] for symbol in tasks.symbols],
        "worker": [names[worker] for worker in tasks.workers],
        "core": [None if lane == LOOP_LANE else lane for lane in tasks.lanes],
        "cpus": tasks.cpus.tolist(),
        "begun_us": tasks.begun_us.tolist(),
        "duration_us": tasks.durations_us.tolist(),
        "size_bytes": tasks.sizes_bytes.tolist(),
        "outcome": [OUTCOMES[outcome] for outcome in tasks.outcomes],
    }
