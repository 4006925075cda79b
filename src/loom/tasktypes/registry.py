"""The built-in task types by symbol."""

from types import MappingProxyType
from typing import Final

from loom.tasktypes import arrays, basic, calls, content, run
from loom.tasktypes.base import RunContext, TaskError, TaskType

__all__ = ["TASK_TYPES", "RunContext", "TaskError", "TaskType"]

_FAMILIES: Final = (basic, content, arrays, run, calls)

TASK_TYPES: Final = MappingProxyType({kind.symbol: kind for family in _FAMILIES for kind in family.TYPES})
