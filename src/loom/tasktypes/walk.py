"""The walk over a plan: every task behind the submitted ones gets a number, inputs before consumers."""

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from types import MappingProxyType
from typing import Final

from loom.errors import InvalidPlan
from loom.limits import MAX_INPUTS
from loom.tasktypes.task import Reference, Source, Task

NOTHING: Final[Mapping[Task, Task]] = MappingProxyType({})
_UNKNOWN: Final = -1  # in the place of a number
_SERIES: Final = (tuple, list)
_NAME_CHARS: Final = 200  # of a label or symbol in an error message


def name_of(task: Task) -> str:
    """A task as error messages call it."""
    name = repr(task.label or task.task_type)
    return f"task {name if len(name) <= _NAME_CHARS else name[:_NAME_CHARS] + '...'}"


class Walk:
    """Numbers tasks depth first; `tasks[i]` has number `first + i`.

    `results` are the numbers of the submitted tasks. `inputs` has the numbers of all tasks' inputs in a row, those of
    `tasks[i]` end at `input_ends[i]`.
    """

    def __init__(
        self,
        submitted: Sequence[Task],
        first: int,
        number_of: Callable[[Reference], int],
        loaded: Mapping[Task, Task] = NOTHING,
    ) -> None:
        for position, task in enumerate(submitted):
            if not isinstance(task, Task):
                raise InvalidPlan(f"what was submitted at position {position} is no task: {task!r:.200}")
        self.first = first
        self.tasks: list[Task] = []
        self.inputs: list[int] = []
        self.input_ends: list[int] = []
        self._number_of = number_of
        self._loaded = loaded  # tasks that stand in the place of others, which need their inputs no more
        self._numbers: dict[Source, int] = {}
        self._open: set[Task] = set()  # tasks whose inputs are being numbered: the way down to where the walk is
        self._walk(submitted)
        self.results = [self._numbers[task] for task in submitted]

    def _walk(self, submitted: Sequence[Task]) -> None:
        numbers, tasks, inputs, ends = self._numbers, self.tasks, self.inputs, self.input_ends
        known, loaded = numbers.get, self._loaded
        ahead = list(reversed(submitted))
        while ahead:
            task = ahead.pop()
            if task in numbers:
                continue
            stand_in = task
            if loaded and task in loaded:
                stand_in = loaded[task]
            sources = stand_in.inputs
            if sources:
                try:
                    own = list(map(known, sources, repeat(_UNKNOWN)))
                except TypeError:  # no series, or something unhashable in it
                    own = [_UNKNOWN]
                if _UNKNOWN in own or len(own) > MAX_INPUTS or not isinstance(sources, _SERIES):
                    self._open.add(task)
                    ahead.append(task)
                    ahead += self._unnumbered(task)
                    continue
                inputs += own
            ends.append(len(inputs))
            numbers[task] = self.first + len(tasks)
            tasks.append(stand_in)

    def _unnumbered(self, task: Task) -> list[Task]:
        """The tasks among a task's inputs that have no number, last one first; futures without one get theirs."""
        sources = task.inputs
        if not isinstance(sources, _SERIES):
            raise InvalidPlan(f"{name_of(task)}: its inputs are no list or tuple but {type(sources).__name__}")
        if len(sources) > MAX_INPUTS:
            raise InvalidPlan(f"{name_of(task)} has {len(sources)} inputs (limit {MAX_INPUTS})")
        found: list[Task] = []
        for position, source in enumerate(sources):
            if isinstance(source, Task):
                if source in self._numbers:
                    continue
                if source in self._open:
                    raise InvalidPlan(f"{name_of(source)} depends on itself: the plan has a cycle")
                found.append(source)
            elif not isinstance(source, Reference):
                raise InvalidPlan(
                    f"{name_of(task)}: its input {position} is neither a task nor a future: {source!r:.200}"
                )
            elif source not in self._numbers:
                self._numbers[source] = self._number_of(source)
        found.reverse()
        return found
