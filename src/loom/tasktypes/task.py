"""The nodes of a plan as users build them."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

from loom.messages import DGET, DSLICE
from loom.resources import Request

Policy: TypeAlias = Literal["standard", "simple", "scheduler"]
DYNAMIC_TYPES: Final = frozenset({DGET, DSLICE})
POLICIES: Final = frozenset({"standard", "simple", "scheduler"})


class Source:
    """What builders accept as an input: a task, a future, or inside a Python task a wrapped input."""

    __slots__ = ()


class Reference(Source):
    """An object that exists, or is being made, outside of the plan; a client's futures are such."""

    __slots__ = ("__weakref__", "task_id")
    task_id: int
    is_dynamic: bool = False  # the server makes several tasks of what consumes it


class InputReference(Reference):
    """An input of a running task, in the plan that the task returns: `task_id` is its position."""

    __slots__ = ()

    def __init__(self, position: int) -> None:
        self.task_id = position


class Task(Source):
    """One step of a plan. Every attribute may be set until the task is submitted.

    `policy` says how the task is scheduled: "standard" needs its request, "simple" is light whatever its request says;
    where it is None a task with a request is standard, one without is simple; "scheduler" have those that the server
    expands (dslice, dget). `label` and `metadata` are for people. `checkpoint_path` (absolute, in a directory that all
    workers see) is where the result is saved; `Client.submit(load=True)` takes it from there.
    """

    __slots__ = (
        "__weakref__",
        "checkpoint_path",
        "config",
        "inputs",
        "label",
        "metadata",
        "policy",
        "resource_request",
        "task_type",
    )

    def __init__(
        self,
        task_type: str = "",
        inputs: Sequence[Source] = (),
        config: bytes | str = b"",
        resource_request: Request | None = None,
        label: str | None = None,
    ) -> None:
        self.task_type = task_type
        self.inputs = inputs
        self.config = config
        self.resource_request = resource_request
        self.label = label
        self.policy: Policy | None = None
        self.metadata: Mapping[str, object] | None = None
        self.checkpoint_path: str | None = None

    def __repr__(self) -> str:
        return f"<Task {self.label or self.task_type!r}>"


def is_dynamic(source: Source) -> bool:
    """Whether the server makes several tasks of what consumes it."""
    if isinstance(source, Task):
        return source.task_type in DYNAMIC_TYPES
    return isinstance(source, Reference) and source.is_dynamic
