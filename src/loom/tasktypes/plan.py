"""Plans as they travel: the tasks behind what is submitted, in topological order, in columns.

Made for millions of tasks at a few microseconds each: one walk that numbers the tasks, one pass backwards for what
depends on consumers, then columns chunk by chunk. Nothing recurses, and nothing is sent before all of it is checked.
"""

import gc
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Final, cast

from loom.errors import InvalidPlan
from loom.ids import SERVER_MADE
from loom.limits import CHUNK_TARGET_BYTES, MAX_CHUNK_BYTES, MAX_CHUNK_TASKS, MAX_CONFIG_BYTES, MAX_PATH_BYTES
from loom.messages import RESULT, RUN, PlanChunk
from loom.tasktypes.base import TaskError
from loom.tasktypes.content import OPEN
from loom.tasktypes.kinds import KindTable, check_checkpoint
from loom.tasktypes.paths import shown
from loom.tasktypes.run import check_files
from loom.tasktypes.saving import LOAD, SAVE
from loom.tasktypes.task import DYNAMIC_TYPES, InputReference, Reference, Task
from loom.tasktypes.walk import NOTHING, Walk, name_of

__all__ = ["EncodedPlan", "Reference", "Task", "collector_paused", "encode_plan", "encode_redirect"]

_NUMBER_BYTES: Final = 8  # of one input in a chunk
_BYTES: Final = {bytes}
_WITH_FILES: Final = (RUN, OPEN, SAVE, LOAD)


@dataclass(frozen=True, slots=True)
class EncodedPlan:
    """A plan in chunks. `numbers`: of each submitted task, in order; `count`: of all tasks in it."""

    numbers: list[int]
    count: int
    chunks: list[PlanChunk]

    @property
    def has_dynamic(self) -> bool:
        return any(not DYNAMIC_TYPES.isdisjoint(chunk.symbols) for chunk in self.chunks)

    def __iter__(self) -> Iterator[PlanChunk]:
        return iter(self.chunks)


def encode_plan(
    tasks: Sequence[Task], first: int, number_of: Callable[[Reference], int], loaded: Mapping[Task, Task] = NOTHING
) -> EncodedPlan:
    """Number the tasks and all they need from `first` on, inputs before consumers, and encode them.

    `number_of` gives the number of a future, or raises what is wrong with it. `loaded`: what is put in the place of
    tasks whose objects are there already. InvalidPlan names the task at fault.
    """
    with collector_paused():
        walk = Walk(tasks, first, number_of, loaded)
        columns = _Columns(walk)
        chunks = [columns.chunk(start, end) for start, end in columns.cuts(MAX_CHUNK_TASKS, CHUNK_TARGET_BYTES)]
    return EncodedPlan(walk.results, len(walk.tasks), chunks)


def encode_redirect(task: Task) -> PlanChunk:
    """The plan that replaces a running task, as messages.TaskRedirected has it; the last row is `task`.

    References in it are InputReferences. TaskError where it is no plan, or does not fit into one chunk.
    """
    try:
        walk = Walk([task], SERVER_MADE, _position_of)
        columns = _Columns(walk)
        cuts = columns.cuts(MAX_CHUNK_TASKS, MAX_CHUNK_BYTES)
        if len(cuts) == 1:
            return columns.chunk(*cuts[0])
    except InvalidPlan as error:
        raise TaskError(f"The task returned a plan that is invalid: {error}") from None
    raise TaskError(
        f"The task returned a plan that is too large: {len(walk.tasks)} tasks (limit {MAX_CHUNK_TASKS}, and "
        f"{MAX_CHUNK_BYTES} bytes)"
    )


def checkpointed(tasks: Sequence[Task], number_of: Callable[[Reference], int]) -> list[Task]:
    """The tasks with a checkpoint among those submitted and all they need. InvalidPlan as in `encode_plan`."""
    with collector_paused():
        walk = Walk(tasks, SERVER_MADE, number_of)  # above the numbers of all futures
        _Columns(walk)
    return [task for task in walk.tasks if task.checkpoint_path is not None]


def _position_of(reference: Reference) -> int:
    if not isinstance(reference, InputReference):
        raise InvalidPlan(f"a future of a client is no input inside a task: {reference!r:.200}")
    return reference.task_id


class _Columns:
    """A plan's columns, whole where chunks share the reckoning."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._levels, self._consumers = _weigh(walk)
        self._configs = _configs(walk.tasks)
        self._checkpoints = [row for row, task in enumerate(walk.tasks) if task.checkpoint_path is not None]
        self._checkpoint_paths = [check_checkpoint(walk.tasks[row]) for row in self._checkpoints]
        if len(set(self._checkpoint_paths)) < len(self._checkpoint_paths):
            self._refuse_shared_checkpoints()
        self._flags = bytearray(len(walk.tasks))
        for number in walk.results:
            self._flags[number - walk.first] = RESULT

    def _refuse_shared_checkpoints(self) -> None:
        writers: dict[bytes, Task] = {}
        for row, path in zip(self._checkpoints, self._checkpoint_paths, strict=True):
            task = self._walk.tasks[row]
            other = writers.setdefault(path, task)
            if other is not task:
                raise InvalidPlan(
                    f"{name_of(other)} and {name_of(task)} have the same checkpoint_path {task.checkpoint_path!r:.200}:"
                    " one would be loaded for the other; give each its own"
                )

    def cuts(self, max_tasks: int, target_bytes: int) -> list[tuple[int, int]]:
        """Rows of each chunk: at most so many and about so many bytes, but at least one."""
        cuts = []
        start, count = 0, len(self._configs)
        while start < count:
            end = min(start + max_tasks, count)
            if self._size_bytes(start, end) > target_bytes:
                sizes = accumulate(self._size_bytes(row, row + 1) for row in range(start, end))
                end = max(start + 1, start + sum(1 for _ in takewhile(target_bytes.__ge__, sizes)))
                if self._size_bytes(start, end) > MAX_CHUNK_BYTES:
                    raise InvalidPlan(
                        f"{name_of(self._walk.tasks[start])} has too many inputs and too large a configuration"
                    )
            cuts.append((start, end))
            start = end
        return cuts

    def _size_bytes(self, start: int, end: int) -> int:
        """Of these rows' inputs and configurations."""
        ends = self._walk.input_ends
        n_inputs = ends[end - 1] - (ends[start - 1] if start else 0)
        return _NUMBER_BYTES * n_inputs + sum(map(len, self._configs[start:end]))

    def chunk(self, start: int, end: int) -> PlanChunk:
        walk = self._walk
        kinds = KindTable()
        symbol_of, label_of, request_of, rules_of = kinds.columns(walk.tasks[start:end])
        configs = self._configs[start:end]
        inputs_start = walk.input_ends[start - 1] if start else 0
        inputs_end = walk.input_ends[end - 1]
        low, high = bisect_left(self._checkpoints, start), bisect_left(self._checkpoints, end)
        return PlanChunk(
            plan_first=walk.first,
            first=walk.first + start,
            symbols=list(kinds.symbols),
            labels=list(kinds.labels),
            requests=list(kinds.requests),
            rules=list(kinds.rules) if kinds.has_rules else [],
            symbol_of=symbol_of,
            label_of=label_of,
            request_of=request_of,
            rules_of=rules_of if kinds.has_rules else b"",
            flags=bytes(self._flags[start:end]),
            levels=array("I", self._levels[start:end]).tobytes(),
            consumers=array("I", self._consumers[start:end]).tobytes(),
            input_ends=array("I", [end - inputs_start for end in walk.input_ends[start:end]]).tobytes(),
            inputs=array("Q", walk.inputs[inputs_start:inputs_end]).tobytes(),
            config_ends=array("I", accumulate(map(len, configs))).tobytes(),
            configs=b"".join(configs),
            checkpoint_rows=array("I", [row - start for row in self._checkpoints[low:high]]).tobytes(),
            checkpoint_paths=self._checkpoint_paths[low:high],
            more=end < len(walk.tasks),
        )


def _weigh(walk: Walk) -> tuple[list[int], list[int]]:
    """The level of each row (0 for a sink), and how many tasks of the plan take its object."""
    first, inputs, ends = walk.first, walk.inputs, walk.input_ends
    levels = [0] * len(ends)
    consumers = [0] * len(ends)
    end = len(inputs)
    for row in range(len(ends) - 1, -1, -1):
        start = ends[row - 1] if row else 0
        if start == end:
            continue
        level = levels[row] + 1
        for number in (inputs[start],) if end - start == 1 else set(inputs[start:end]):
            if number >= first:
                source = number - first
                consumers[source] += 1
                if levels[source] < level:
                    levels[source] = level
        end = start
    return levels, consumers


def _configs(tasks: Sequence[Task]) -> list[bytes]:
    """The configuration of each, checked."""
    configs = cast(list[bytes], [task.config for task in tasks])
    if not set(map(type, configs)) <= _BYTES or max(map(len, configs), default=0) > MAX_CONFIG_BYTES:
        configs = [_config(task) for task in tasks]
    for row, task in enumerate(tasks):
        if task.task_type in _WITH_FILES:  # some microseconds each
            _check_files(task, configs[row])
    return configs


def _check_files(task: Task, config: bytes) -> None:
    """The files that a configuration names, which may have been set after the builder has checked them."""
    try:
        if task.task_type == RUN:
            check_files(config)
        elif b"\0" in config or not 0 < len(config) <= MAX_PATH_BYTES:
            raise ValueError(f"{shown(config)} is no file name")
    except ValueError as error:
        raise InvalidPlan(f"{name_of(task)}: {error}") from None


def _config(task: Task) -> bytes:
    config = task.config
    if isinstance(config, str):
        try:
            config = config.encode()
        except UnicodeEncodeError:
            raise InvalidPlan(f"{name_of(task)}: its configuration is no valid text") from None
    if not isinstance(config, bytes):
        raise InvalidPlan(f"{name_of(task)}: its configuration is neither bytes nor str but {type(config).__name__}")
    if len(config) > MAX_CONFIG_BYTES:
        raise InvalidPlan(
            f"{name_of(task)}: its configuration has {len(config)} bytes (limit {MAX_CONFIG_BYTES}); larger data comes "
            "from a file (tasks.open), or from several const joined by merge"
        )
    return config


@contextmanager
def collector_paused() -> Iterator[None]:
    """Hold cyclic garbage collection off: with millions of tasks alive a full one takes a second and finds nothing."""
    if not gc.isenabled():
        yield
        return
    try:
        gc.disable()  # in here: an interrupt may come right after it
        yield
    finally:
        gc.enable()
