"""Facts in words, and as JSON. Neither shows what tasks were given (configs) nor what opens a session (tokens)."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec

from loom.core.columns import column
from loom.facts import (
    AllocationsKept,
    Fact,
    ObjectsSaved,
    PlanAbandoned,
    PlanAdded,
    ResultsCancelled,
    ResultsReleased,
    ServerStarted,
    SessionAt,
    SessionBegan,
    SessionEnded,
    SessionTaken,
    TaskBecame,
    TaskMarked,
    TasksFailed,
    TasksFinished,
    TasksMade,
    WorkerAttached,
    WorkerDetached,
)
from loom.ids import number_of, session_of
from loom.messages import PlanChunk

_SHOWN: Final = 6  # of many numbers
_HIDDEN: Final = ("token", "config", "configs", "input_ends")
_Q_COLUMNS: Final = ("inputs", "numbers")
_ERROR_CHARS: Final = 100


def types_in(chunk: PlanChunk) -> dict[str, int]:
    """How many tasks of which type."""
    counts = Counter(column(chunk.symbol_of, "H"))
    return {chunk.symbols[index]: n for index, n in sorted(counts.items())}


def as_json(fact: Fact) -> dict[str, Any]:
    """For `json.dumps`; task ids are taken apart."""
    said: dict[str, Any] = {"fact": type(fact).__name__}
    match fact:
        case PlanAdded(session, seq, chunk, stands_for, names):
            said |= {"session": session, "seq": seq, "first": chunk.first, "tasks": len(chunk.flags)}
            said |= {"types": types_in(chunk), "more": chunk.more, "stands_for": stands_for}
            said["names"] = [{"number": number, "name": name} for number, name in names]
        case TasksFinished():
            rows = zip(column(fact.tasks, "Q"), column(fact.attempts, "Q"), column(fact.sizes, "Q"), strict=True)
            said["tasks"] = [_task(task) | {"attempt": attempt, "size_bytes": size} for task, attempt, size in rows]
            for row, length in fact.lengths:
                said["tasks"][row]["length"] = length
        case ObjectsSaved():
            said["tasks"] = [_task(task) for task in column(fact.tasks, "Q")]
        case _:
            for name in fact.__struct_fields__:
                value = getattr(fact, name)
                if name in _Q_COLUMNS:
                    said[name] = column(value, "Q").tolist()
                elif name not in _HIDDEN:
                    said[name] = msgspec.to_builtins(value)
            if isinstance(fact, TasksMade):
                said["tasks"] = len(column(fact.input_ends, "I"))
    return said


def as_text(fact: Fact) -> str:
    """One line."""
    match fact:
        case ServerStarted(_server, incarnation, next_session, next_worker, version):
            numbers = f"next session {next_session}, next worker {next_worker}"
            return f"incarnation {incarnation} of the server, Loom {version}; {numbers}"
        case WorkerAttached(worker, name):
            return f"worker {worker}: {name}"
        case WorkerDetached(worker):
            return f"worker {worker}"
        case SessionBegan(session, _token, name):
            return f"session {session}" + (f", named {name!r}" if name else "")
        case SessionTaken(session) | SessionEnded(session) | PlanAbandoned(session):
            return f"session {session}"
        case SessionAt(session, seq, next_number, plan_open):
            return f"session {session}: command {seq}, next task {next_number}" + (", in a plan" if plan_open else "")
        case PlanAdded(session, seq, chunk, stands_for, names):
            return f"session {session}, command {seq}: {_plan(chunk, stands_for, names)}"
        case TasksMade():
            tasks = _tasks(fact.first, len(column(fact.input_ends, "I")), fact.stands_for)
            return f"session {fact.session}: {tasks} of {fact.symbol}"
        case TaskBecame():
            return f"session {fact.session}: task {fact.number} is {fact.symbol} of {len(fact.inputs) // 8} inputs now"
        case TaskMarked():
            return f"session {fact.session}: task {fact.number} has flags {fact.flags:#x}"
        case TasksFinished():
            return f"{_by_session(fact.tasks)}; {sum(column(fact.sizes, 'Q')):,} bytes"
        case ObjectsSaved():
            return _by_session(fact.tasks)
        case TasksFailed():
            error = fact.error.strip().rpartition("\n")[2]
            cut = error if len(error) <= _ERROR_CHARS else error[:_ERROR_CHARS] + "..."
            return f"session {fact.session}: {_numbers(column(fact.numbers, 'Q').tolist())}; task {fact.task}: {cut}"
        case ResultsReleased(session, seq, numbers) | ResultsCancelled(session, seq, numbers):
            return f"session {session}, command {seq}: {_numbers(column(numbers, 'Q').tolist())}"
        case AllocationsKept(state):
            return f"allocation queues: {len(state):,} bytes"
    raise AssertionError(f"no words for {type(fact).__name__}")


def _task(task: int) -> dict[str, int]:
    return {"session": session_of(task), "number": number_of(task)}


def _plan(chunk: PlanChunk, stands_for: int | None, names: list[tuple[int, str]]) -> str:
    types = ", ".join(f"{n:,} {symbol}" for symbol, n in types_in(chunk).items())
    said = f"{_tasks(chunk.first, len(chunk.flags), stands_for)} ({types})"
    if names:
        said += "; " + ", ".join(f"{number} is named {name!r}" for number, name in names[:_SHOWN])
        said += f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return said + ("; the plan goes on" if chunk.more else "")


def _tasks(first: int, count: int, stands_for: int | None) -> str:
    span = f"task {first}" if count == 1 else f"tasks {first} to {first + count - 1}"
    return span if stands_for is None else f"{span} in the place of {stands_for}"


def _numbers(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    more = f" and {len(numbers) - _SHOWN:,} more" if len(numbers) > _SHOWN else ""
    return f"task{'s' if len(numbers) != 1 else ''} {shown}{more}"


def _by_session(tasks: bytes) -> str:
    groups: dict[int, list[int]] = {}
    for task in column(tasks, "Q"):
        groups.setdefault(session_of(task), []).append(number_of(task))
    return "; ".join(f"session {session}: {_numbers(numbers)}" for session, numbers in groups.items())
