"""Arrays of data objects."""

from collections.abc import Iterable, Sequence
from typing import Final

from loom.data.array import Array
from loom.data.base import DataObject
from loom.messages import ARRAY_MAKE
from loom.tasktypes import checks
from loom.tasktypes.base import RunContext, TaskType
from loom.tasktypes.task import Source, Task


def array_make(inputs: Iterable[Source]) -> Task:
    """An array of the inputs, in order."""
    return Task(ARRAY_MAKE, checks.series("array_make", inputs))


def _run_array_make(_context: RunContext, _config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    return Array(list(inputs))


TYPES: Final = (TaskType(ARRAY_MAKE, "inline", _run_array_make),)
