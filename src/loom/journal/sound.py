"""Whether facts hang together: whoever folds or shows them need not look.

Their checksums say that they are what was written. What fails here was written by another Loom.
"""

from __future__ import annotations

from typing import Final

from loom.facts import (
    AnyFact,
    ObjectsSaved,
    PlanAdded,
    ResultsCancelled,
    ResultsReleased,
    ServerStarted,
    SessionBegan,
    TaskBecame,
    TasksFailed,
    TasksFinished,
    TasksMade,
    WorkerAttached,
)
from loom.messages import PlanChunk

_LOOKED_AT: Final = frozenset({TasksFinished, ObjectsSaved, PlanAdded, TasksMade, TaskBecame, TasksFailed}) | frozenset(
    {ResultsReleased, ResultsCancelled, ServerStarted, SessionBegan, WorkerAttached}
)
_MOST: Final = 1 << 62  # what is counted from there stays a number of 64 bits


def is_sound(fact: AnyFact) -> bool:
    """Columns are whole, those that belong together of one length, tables are not referred past, numbers can be counted
    on.
    """
    if type(fact) not in _LOOKED_AT:  # most facts are small ones of which nothing can be wrong
        return True
    match fact:
        case TasksFinished(tasks, attempts, sizes, lengths):
            n = len(tasks) // 8
            return len(tasks) == len(attempts) == len(sizes) == 8 * n and all(row < n for row, _ in lengths)
        case ObjectsSaved(tasks):
            return not len(tasks) % 8
        case PlanAdded():
            return _is_plan(fact.chunk)
        case TasksMade():
            return _fit(fact.input_ends, fact.inputs) and len(fact.configs) in (1, len(fact.input_ends) // 4)
        case TaskBecame():
            return not len(fact.inputs) % 8
        case ServerStarted():
            return max(fact.incarnation, fact.next_session, fact.next_worker) < _MOST
        case SessionBegan():
            return fact.session < _MOST
        case WorkerAttached():
            return fact.worker < _MOST
        case TasksFailed() | ResultsReleased() | ResultsCancelled():
            return not len(fact.numbers) % 8
    return True


def _is_plan(plan: PlanChunk) -> bool:
    n = len(plan.flags)
    narrow = (plan.symbol_of, plan.label_of, plan.request_of, plan.rules_of or bytes(2 * n))
    wide = (plan.levels, plan.consumers, plan.input_ends, plan.config_ends)
    if any(len(column) != 2 * n for column in narrow) or any(len(column) != 4 * n for column in wide):
        return False
    if len(plan.checkpoint_rows) != 4 * len(plan.checkpoint_paths) or not _fit(plan.input_ends, plan.inputs):
        return False
    tables = (plan.symbols, plan.labels, plan.requests, plan.rules if plan.rules_of else [None])
    return all(_largest(column) < len(table) for column, table in zip(narrow, tables, strict=True))


def _fit(ends: bytes, inputs: bytes) -> bool:
    """A cumulative I column, and the Q column that it cuts."""
    return (
        not len(ends) % 4
        and not len(inputs) % 8
        and (not ends or int.from_bytes(ends[-4:], "little") == len(inputs) // 8)
    )


def _largest(column: bytes) -> int:
    return max(memoryview(column).cast("H"), default=-1)
