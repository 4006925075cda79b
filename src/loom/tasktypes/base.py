"""What every task type has: a symbol, a place to run, a function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from loom.data.base import DataObject
from loom.tasktypes.task import Task

Place: TypeAlias = Literal["inline", "executor", "program"]


class TaskError(Exception):
    """The task failed by itself; the text is for its user."""


@dataclass(slots=True)
class RunContext:
    """What a running task may use besides its configuration and inputs.

    `task_id` is its number in its session, `input_ids` are the ids of its inputs. `log` takes a level of the logging
    module and a line. `new_output` takes the size to expect and gives the path of a new, empty file for a large
    output; where it is None outputs stay in memory. `functions` keeps live functions by object id between tasks.
    `attempt` counts the times that the task was given to a worker, from 1.
    """

    task_id: int
    log: Callable[[int, str], None]
    new_output: Callable[[int], str] | None
    functions: dict[int, Any]
    input_ids: Sequence[int]
    attempt: int = 1


class RunFunction(Protocol):
    """Makes the task's object, or a task to put in its place: its References then are InputReferences.

    TaskError where the task fails by itself; any other exception counts as its failure too.
    """

    def __call__(self, context: RunContext, config: bytes, inputs: Sequence[DataObject], /) -> DataObject | Task: ...


@dataclass(frozen=True, slots=True)
class TaskType:
    """A kind of task.

    `place` is where it runs: "inline" in the worker's loop while its bytes stay small, "executor" in an executor
    process, "program" as a program of its own, which the worker starts from the configuration (`run` refuses).
    """

    symbol: str
    place: Place
    run: RunFunction
