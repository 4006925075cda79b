"""The nodes of a plan as users build them."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from loom.errors import InvalidPlan
from loom.limits import MAX_PRIORITY, MAX_RETRIES, MAX_TIME_LIMIT_MS
from loom.messages import DGET, DSLICE, Rules
from loom.resources import Request

Policy: TypeAlias = Literal["standard", "simple", "scheduler"]
DYNAMIC_TYPES: Final = frozenset({DGET, DSLICE})
POLICIES: Final = frozenset({"standard", "simple", "scheduler"})
_NO_RULES: Final = Rules()


class Source:
    """What builders accept as an input: a task, a future, or inside a Python task a wrapped input."""

    __slots__ = ()


class Reference(Source):
    """An object that exists, or is being made, outside of the plan; a client's futures are such."""

    __slots__ = ()
    task_id: int
    is_dynamic: bool = False  # the server makes several tasks of what consumes it


class InputReference(Reference):
    """An input of a running task, in the plan that the task returns: `task_id` is its position."""

    __slots__ = ("__weakref__", "task_id")

    def __init__(self, position: int) -> None:
        self.task_id = position


class Task(Source, Struct, eq=False, weakref=True):
    """One step of a plan. Every attribute may be set until the task is submitted.

    `policy` says how the task is scheduled: "standard" needs its request, "simple" is light whatever its request says;
    where it is None a task with a request is standard, one without is simple; "scheduler" have those that the server
    expands (dslice, dget). `label` and `metadata` are for people. `checkpoint_path` (absolute, in a directory that all
    workers see) is where the result is saved; `Client.submit(load=True)` takes it from there.

    `retries`: how often the task is run again when it fails. `time_limit_s`: how long one run of it may take (None: as
    long as it likes), to the millisecond. `priority`: among tasks of one client that could start, those with the
    highest do. A value that is none raises InvalidPlan where it is set. `rules` is all three, None where none is set.

    A struct is made in a third of the time of a class with an `__init__`, and plans have millions.
    """

    task_type: str = ""
    inputs: Sequence[Source] = ()
    config: bytes | str = b""
    resource_request: Request | None = None
    label: str | None = None
    policy: Policy | None = None
    metadata: Mapping[str, object] | None = None
    checkpoint_path: str | None = None
    rules: Rules | None = None  # one slot for what few tasks have

    @property
    def retries(self) -> int:
        return (self.rules or _NO_RULES).retries

    @retries.setter
    def retries(self, retries: int) -> None:
        self.rules = make_rules(retries, self.time_limit_s, self.priority)

    @property
    def time_limit_s(self) -> float | None:
        time_limit_ms = (self.rules or _NO_RULES).time_limit_ms
        return time_limit_ms / 1000 if time_limit_ms else None

    @time_limit_s.setter
    def time_limit_s(self, time_limit_s: float | None) -> None:
        self.rules = make_rules(self.retries, time_limit_s, self.priority)

    @property
    def priority(self) -> int:
        return (self.rules or _NO_RULES).priority

    @priority.setter
    def priority(self, priority: int) -> None:
        self.rules = make_rules(self.retries, self.time_limit_s, priority)

    def __repr__(self) -> str:
        return f"<Task {self.label or self.task_type!r}>"


def make_rules(retries: int, time_limit_s: float | None, priority: int) -> Rules | None:
    """The three as they travel; None where all are what they are without being set. InvalidPlan for what is none."""
    if not _is_whole(retries) or not 0 <= retries <= MAX_RETRIES:
        raise InvalidPlan(
            f"retries={retries!r:.200}: write how often the task is run again when it fails, from 0 to {MAX_RETRIES}"
        )
    if not _is_whole(priority) or not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidPlan(
            f"priority={priority!r:.200}: write a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}; the"
            " highest goes first"
        )
    time_limit_ms = 0
    if time_limit_s is not None:
        is_number = _is_whole(time_limit_s) or isinstance(time_limit_s, float)
        if not is_number or not 1 <= time_limit_s * 1000 <= MAX_TIME_LIMIT_MS:  # the comparison is False for a NaN
            raise InvalidPlan(
                f"time_limit_s={time_limit_s!r:.200}: write seconds, from 0.001 to {MAX_TIME_LIMIT_MS // 1000}, or None"
                " for as long as the task likes"
            )
        time_limit_ms = round(time_limit_s * 1000)
    rules = Rules(retries, priority, time_limit_ms)
    return None if rules == _NO_RULES else rules


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_dynamic(source: Source) -> bool:
    """Whether the server makes several tasks of what consumes it."""
    if isinstance(source, Task):
        return source.task_type in DYNAMIC_TYPES
    return isinstance(source, Reference) and source.is_dynamic
