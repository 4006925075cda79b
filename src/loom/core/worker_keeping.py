"""What a worker says it has when a server is there again that has kept its journal.

Tasks that have failed or have been redirected meanwhile are named first, whatever has become of their inputs: what
became of them is told next. Each input of the others is an object that is named, or made by a task named before.
"""

from __future__ import annotations

from collections.abc import Mapping

from loom.core.columns import ids_column
from loom.core.worker_objects import Objects
from loom.core.worker_reports import WorkerReports
from loom.core.worker_tasks import Run, Task
from loom.limits import INVENTORY_ITEMS
from loom.messages import Message, WorkerInventory


def what_is_here(objects: Objects, tasks: Mapping[int, Task], reports: WorkerReports) -> list[Message]:
    """To be said before anything else. What is unsaid in `reports` is void: it can be seen from this."""
    reports.keep_failures()
    failures = reports.take_failures()
    for task in [i for i in failures if i in tasks or i in objects.held]:
        del failures[task]  # of an earlier attempt
    runs = [(task, attempt) for task, (attempt, _) in failures.items()]
    runs += [(t.id, t.attempt) for t in tasks.values()]
    said: list[Message] = [*_inventory(objects, runs)]
    said += [failure for _, failure in failures.values()]
    return said


def _inventory(objects: Objects, runs: list[Run]) -> list[WorkerInventory]:
    """At least one message, the last of which says that it is the last."""
    ids = list(objects.held)
    parts: list[WorkerInventory] = []
    for begin in range(0, max(len(ids), len(runs), 1), INVENTORY_ITEMS):
        end = begin + INVENTORY_ITEMS
        some = ids[begin:end]
        parts.append(
            WorkerInventory(
                ids_column(some),
                ids_column([objects.attempt(i) for i in some]),
                ids_column([objects.held[i] for i in some]),
                ids_column([objects.lengths.get(i, 0) for i in some]),
                ids_column([task for task, _ in runs[begin:end]]),
                ids_column([attempt for _, attempt in runs[begin:end]]),
                end >= len(ids) and end >= len(runs),
            )
        )
    return parts
