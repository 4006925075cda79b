"""The shortest journal that says the same: without what nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from loom.core.columns import column, ids_column
from loom.core.graph import Graph
from loom.core.kinds import Kinds
from loom.core.past import Past, PastSession
from loom.core.restore import ghost, restore_session
from loom.core.session import Failure, Session
from loom.facts import (
    AllocationsKept,
    AnyFact,
    ObjectsSaved,
    PlanAdded,
    ResultsCancelled,
    ResultsReleased,
    ServerStarted,
    SessionAt,
    SessionBegan,
    TaskMarked,
    TasksFailed,
    TasksFinished,
    WorkerAttached,
)
from loom.ids import task_id
from loom.messages import RESULT

_A_FACT: Final = 4096  # tasks


def compacted(past: Past) -> Iterator[AnyFact]:
    """Facts that fold to what is still needed of `past`, which is used up."""
    yield ServerStarted(past.server, past.incarnation, past.next_session, past.next_worker, past.version)
    for worker, name in past.workers.items():
        yield WorkerAttached(worker, name)
    if past.allocations:
        yield AllocationsKept(past.allocations)
    for session in list(past.sessions.values()):
        yield from _session(session, past.incarnation)


def _session(past: PastSession, incarnation: int) -> Iterator[AnyFact]:
    live = restore_session(Graph(), past, Kinds().find, incarnation, ghost())
    yield SessionBegan(past.id, past.token, past.name, past.starts, past.who)
    numbers: set[int] = set()  # all tasks of which the spec is kept
    for plan in past.plans:
        own = range(plan.chunk.first, plan.chunk.first + len(plan.chunk.flags))
        of_client = plan.stands_for is None
        is_open = past.plan_open and of_client and plan.chunk.plan_first == past.plan_first
        if not is_open and all(live.find(number) is None for number in own):
            continue
        numbers.update(own)
        if of_client:
            yield SessionAt(past.id, 0, plan.chunk.first, False)
        names = [(number, name) for number, name in plan.names if live.names.get(name) == number]
        yield PlanAdded(past.id, plan.seq, plan.chunk, plan.stands_for, names)
    for made in past.made:
        own = range(made.first, made.first + len(column(made.input_ends, "I")))
        if any(live.find(number) is not None for number in own):
            numbers.update(own)
            yield made
    yield SessionAt(past.id, past.seq, past.next_number, past.plan_open)
    for number, became in past.became.items():
        if number in numbers:
            yield became
    for number, flags in past.flags.items():
        if number in numbers:
            yield TaskMarked(past.id, number, flags)
    yield from _wishes(past, live, numbers)
    yield from _outcomes(past, numbers)  # what has failed already cannot be cancelled any more


def _outcomes(past: PastSession, numbers: set[int]) -> Iterator[AnyFact]:
    finished = [number for number in past.finished if number in numbers]
    for some in _stretches(finished):
        ends = [past.finished[number] for number in some]
        lengths = [(row, past.lengths[number]) for row, number in enumerate(some) if number in past.lengths]
        tasks = ids_column([task_id(past.id, number) for number in some])
        attempts, sizes = ids_column([end[0] for end in ends]), ids_column([end[1] for end in ends])
        yield TasksFinished(tasks, attempts, sizes, lengths)
    for some in _stretches([number for number in past.saved if number in numbers]):
        yield ObjectsSaved(ids_column([task_id(past.id, number) for number in some]))
    by_failure: dict[Failure, list[int]] = {}
    for number, failure in past.failures.items():
        if number in numbers:
            by_failure.setdefault(failure, []).append(number)
    for failure, failed in by_failure.items():
        yield TasksFailed(past.id, ids_column(failed), failure.task, failure.worker, failure.error)


def _wishes(past: PastSession, live: Session, numbers: set[int]) -> Iterator[AnyFact]:
    """Which results are not wanted any more; those of tasks that are gone count as released."""
    results = {
        plan.chunk.first + row
        for plan in past.plans
        for row, flags in enumerate(plan.chunk.flags)
        if flags & RESULT and plan.chunk.first in numbers
    }
    for some in _stretches(sorted(number for number in results if number in past.released)):
        yield ResultsReleased(past.id, 0, ids_column(some))
    for some in _stretches(sorted(number for number in past.cancelled if live.find(number) is not None)):
        yield ResultsCancelled(past.id, 0, ids_column(some))


def _stretches(numbers: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(numbers), _A_FACT):
        yield numbers[start : start + _A_FACT]
