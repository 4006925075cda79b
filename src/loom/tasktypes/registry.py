"""The task types by symbol: the built-in ones, and those of plugins in a process that has loaded some."""

from types import MappingProxyType
from typing import Final

from loom.tasktypes import arrays, basic, calls, content, run, saving
from loom.tasktypes.base import RunContext, TaskError, TaskType

__all__ = ["TASK_TYPES", "RunContext", "TaskError", "TaskType", "add_task_type"]

_FAMILIES: Final = (basic, content, arrays, saving, run, calls)

_types: Final = {kind.symbol: kind for family in _FAMILIES for kind in family.TYPES}

TASK_TYPES: Final = MappingProxyType(_types)


def add_task_type(kind: TaskType) -> None:
    """Make a task type known in this process, in the place of what its symbol meant before."""
    _types[kind.symbol] = kind
