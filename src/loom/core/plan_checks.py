"""Whether a stretch of a plan that has come over a wire is one. Nothing is changed before that is known.

What is true of every plan that the builders make is asked for here: tables and columns fit each other, inputs are tasks
that are there, and every task is taken by just as many as its chunk says, once the plan is whole. The graph counts on
that: a task with too few consumers would be let go while somebody needs it, one with too many would stay for ever.
"""

from __future__ import annotations

from collections import Counter

from loom.core.columns import column
from loom.core.node import Chunk
from loom.core.session import Session
from loom.errors import ProtocolError
from loom.limits import MAX_CHUNK_BYTES, MAX_CHUNK_TASKS, MAX_INPUTS, MAX_PATH_BYTES
from loom.messages import RESULT, PlanChunk


def check_shape(plan: PlanChunk) -> None:
    """ProtocolError where columns are longer than a chunk's may be, or do not fit each other; O(rows + inputs)."""
    rows = len(plan.flags)
    if rows > MAX_CHUNK_TASKS:
        raise ProtocolError(f"a plan chunk of {rows} tasks (limit {MAX_CHUNK_TASKS})")
    longest = max(len(plan.symbols), len(plan.labels), len(plan.requests), len(plan.rules), len(plan.checkpoint_paths))
    if longest > MAX_CHUNK_TASKS:
        raise ProtocolError("a table of a plan chunk is longer than the chunk")
    size_bytes = len(plan.configs) + len(plan.inputs)
    if size_bytes > MAX_CHUNK_BYTES:
        raise ProtocolError(f"a plan chunk of {size_bytes} bytes (limit {MAX_CHUNK_BYTES})")
    lengths = [len(column(c, "H")) for c in (plan.symbol_of, plan.label_of, plan.request_of)]
    lengths += [len(column(c, "I")) for c in (plan.levels, plan.consumers, plan.input_ends, plan.config_ends)]
    if plan.rules_of:
        lengths.append(len(column(plan.rules_of, "H")))
    if {*lengths} != {rows}:
        raise ProtocolError("a plan chunk's columns differ in length")
    saved = column(plan.checkpoint_rows, "I").tolist()
    if saved != sorted(set(saved)):
        raise ProtocolError("a plan chunk's checkpoints are not in the order of its rows")
    for path in plan.checkpoint_paths:
        if not path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH_BYTES:
            raise ProtocolError(f"a checkpoint cannot be at {path!r:.100}")


def count_inputs(session: Session, plan: PlanChunk, chunk: Chunk, unborn: dict[int, int]) -> None:
    """ProtocolError where an input is not there, or counts of consumers cannot be right; O(rows + inputs).

    `unborn`: how many consumers of tasks of the same plan are still to come, by number; brought up to date where all is
    right.
    """
    first, plan_first = plan.first, plan.plan_first
    counts = Counter(_taken(chunk))
    born: list[tuple[int, int]] = []
    n_settled = 0
    for source, count in counts.items():
        if source >= first:
            continue
        if session.find(source) is None:
            raise ProtocolError(f"a plan has an input {source} that is not there")
        if source >= plan_first:
            left = unborn.get(source, 0) - count
            if left < 0:
                raise ProtocolError(f"task {source} has more consumers than its plan says")
            n_settled += not left
            born.append((source, left))
    later: dict[int, int] = {}
    for source, declared in enumerate(column(plan.consumers, "I").tolist(), first):
        left = declared - counts[source] if source in counts else declared
        if left < 0:
            raise ProtocolError(f"task {source} has more consumers than its plan says")
        if left:
            later[source] = left
        if not declared and not plan.flags[source - first] & RESULT and not chunk.is_target(source):
            raise ProtocolError(f"task {source} is nobody's: it is no result, and no task takes it")
    if not plan.more and (later or n_settled < len(unborn)):
        raise ProtocolError("some task of a plan has fewer consumers than the plan says")
    for source, left in born:
        if left:
            unborn[source] = left
        else:
            del unborn[source]
    unborn.update(later)


def _taken(chunk: Chunk) -> list[int]:
    """The inputs of every row, each once a row."""
    numbers = chunk.inputs.tolist()
    taken: list[int] = []
    number, start = chunk.first, 0
    for end in chunk.input_ends.tolist():
        if end - start == 1:
            taken.append(numbers[start])
            if numbers[start] >= number:
                raise ProtocolError(f"task {number} has an input {numbers[start]} that is not there")
        elif end > start:
            own = set(numbers[start:end])
            taken += own
            if max(own) >= number:
                raise ProtocolError(f"task {number} has an input {max(own)} that is not there")
            if end - start > MAX_INPUTS:
                raise ProtocolError(f"task {number} has {end - start} inputs (limit {MAX_INPUTS})")
        start = end
        number += 1
    return taken
