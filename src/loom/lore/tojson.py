"""A report as JSON, for programs. docs/reports.md describes the keys."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from loom import ids
from loom.lore import figures
from loom.lore.model import OUTCOMES, UNKNOWN, Checkpoint, Failure, Report, Samples, Worker
from loom.trace.records import LOOP_LANE

VERSION: Final = 1


def as_json(report: Report) -> bytes:
    return msgspec.json.encode(_document(report))


def _document(report: Report) -> dict[str, Any]:
    totals = figures.totals(report)
    names = [worker.name for worker in report.workers]
    groups = report.groups
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
        "workers": [_worker(worker) for worker in report.workers],
        "tasks": _tasks(report, names),
        "labels": [_group(groups[one.group], one) for one in figures.by_group(report)],
        "failures": [_failure(report, one) for one in report.failures],
        "transfers": _transfers(report, names),
        "checkpoints": [_checkpoint(names[one.worker], one) for one in report.checkpoints],
        "samples": [_samples(*pair) for pair in zip(names, report.samples, strict=True)],
        "plan": {
            "nodes": [{"label": groups[group], "tasks": n} for group, n in report.plan.counts.items()],
            "edges": [{"from": groups[a], "to": groups[b], "inputs": n} for (a, b), n in report.plan.edges.items()],
        },
    }


def _worker(worker: Worker) -> dict[str, Any]:
    return {
        "name": worker.name,
        "number": worker.number,
        "cpus": worker.cpus,
        "extras": dict(worker.extras),
        "joined_us": worker.joined_us,
        "left_us": worker.left_us,
    }


def _group(label: str, group: figures.GroupFigures) -> dict[str, Any]:
    return {
        "label": label,
        "runs": group.n_runs,
        "median_us": group.median_us,
        "p95_us": group.p95_us,
        "sum_us": group.sum_us,
        "core_us": group.core_us,
        "size_bytes": group.size_bytes,
        "failures": group.n_failures,
    }


def _failure(report: Report, failure: Failure) -> dict[str, Any]:
    return {
        "session": ids.session_of(failure.id),
        "id": ids.number_of(failure.id),
        "label": report.labels[failure.label],
        "symbol": report.symbols[failure.symbol],
        "worker": failure.worker,
        "at_us": failure.at_us,
        "error": failure.error,
    }


def _checkpoint(worker: str, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "session": ids.session_of(checkpoint.object),
        "id": ids.number_of(checkpoint.object),
        "worker": worker,
        "size_bytes": checkpoint.size_bytes,
        "begun_us": checkpoint.begun_us,
        "duration_us": checkpoint.duration_us,
        "error": checkpoint.error,
    }


def _samples(worker: str, samples: Samples) -> dict[str, Any]:
    return {
        "worker": worker,
        "at_us": samples.at_us,
        "cpu_us": samples.cpu_us,
        "memory_bytes": samples.memory_bytes,
        "store_bytes": samples.store_bytes,
        "objects": samples.n_objects,
    }


def _transfers(report: Report, names: list[str]) -> dict[str, list[Any]]:
    moved = report.transfers
    return {
        "session": [ids.session_of(one.object) for one in moved],
        "id": [ids.number_of(one.object) for one in moved],
        "source": [None if one.source == UNKNOWN else names[one.source] for one in moved],
        "target": [names[one.target] for one in moved],
        "size_bytes": [one.size_bytes for one in moved],
        "begun_us": [one.begun_us for one in moved],
        "duration_us": [one.duration_us for one in moved],
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
