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
        known, loaded, opened = numbers.get, self._loaded, self._open
        number, n_inputs = self.first, 0
        shared: Sequence[Source] = ()  # inputs that several tasks in a row have: calls of one function, above all
        own: list[int] = []  # their numbers
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
                if sources is not shared:
                    shared = ()
                    try:
                        if type(sources) is tuple and len(sources) == 1:  # so many have, and it is quicker
                            (source,) = sources
                            if (only := known(source)) is None and type(source) is Task and source not in opened:
                                opened.add(task)
                                ahead += (task, source)
                                continue
                            own = [_UNKNOWN if only is None else only]
                        else:
                            own = list(map(known, sources, repeat(_UNKNOWN)))
                    except TypeError:  # no series, or something unhashable in it
                        own = [_UNKNOWN]
                    if _UNKNOWN in own or len(own) > MAX_INPUTS or not isinstance(sources, _SERIES):
                        opened.add(task)
                        ahead.append(task)
                        ahead += self._unnumbered(task)
                        continue
                    if type(sources) is tuple:
                        shared = sources
                inputs += own
                n_inputs += len(own)
            ends.append(n_inputs)
            numbers[task] = number
            number += 1
            tasks.append(stand_in)

    def _unnumbered(self, task: Task) -> list[Task]:
        """The tasks among a task's inputs that have no number, last one first; futures without one get theirs."""
        sources = task.inputs
        if not isinstance(sources, _SERIES):
            raise InvalidPlan(f"{name_of(task)}: its inputs are no list or tuple but {type(sources).__name__}")
        if len(sources) > MAX_INPUTS:
            raise InvalidPlan(f"{name_of(task)} has {len(sources)} inputs (limit {MAX_INPUTS})")
        numbers, opened = self._numbers, self._open
        found: list[Task] = []
        for source in sources:
            if isinstance(source, Task):
                if source in numbers:
                    continue
                if source in opened:
                    raise InvalidPlan(f"{name_of(source)} depends on itself: the plan has a cycle")
                found.append(source)
            elif not isinstance(source, Reference):
                position = next(position for position, other in enumerate(sources) if other is source)
                raise InvalidPlan(
                    f"{name_of(task)}: its input {position} is neither a task nor a future: {source!r:.200}"
                )
            elif source not in numbers:
                numbers[source] = self._number_of(source)
        found.reverse()
        return found
