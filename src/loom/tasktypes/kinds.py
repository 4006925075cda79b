"""What many tasks of a plan have in common - symbol, label, request, rules - checked once and kept in tables."""

import os
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from loom.errors import InvalidPlan
from loom.limits import MAX_LABEL_CHARS, MAX_SYMBOL_CHARS
from loom.messages import Rules
from loom.resources import Request, is_valid
from loom.tasktypes.paths import check_absolute
from loom.tasktypes.task import POLICIES, Task, is_dynamic
from loom.tasktypes.walk import name_of

_LIGHT = Request()
_NO_RULES = Rules()


class Kind(NamedTuple):
    """Places in a chunk's tables."""

    symbol: int
    label: int
    request: int
    rules: int


class KindTable:
    """The tables of one chunk: distinct symbols, labels, requests and rules, each a dict from value to its place."""

    def __init__(self) -> None:
        self.symbols: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.requests: dict[Request, int] = {}
        self.rules: dict[Rules, int] = {}
        self._kinds: dict[tuple[object, ...], Kind] = {}

    @property
    def has_rules(self) -> bool:
        return not self.rules.keys() <= {_NO_RULES}

    def columns(self, tasks: Sequence[Task]) -> list[bytes]:
        """The places of each task's symbol, label, request and rules, four H columns; InvalidPlan names the first task
        that has none.
        """
        kinds: list[Kind] = []
        kind: Kind | None = None
        symbol = label = request = policy = rules = None
        for task in tasks:
            if (  # as a rule a task is like the one before it, which is seen in a third of the time of a look-up
                kind is None
                or task.task_type is not symbol
                or task.label is not label
                or task.resource_request is not request
                or task.policy is not policy
                or task.rules is not rules
            ):
                symbol, label, request = task.task_type, task.label, task.resource_request
                policy, rules = task.policy, task.rules
                kind = self._kind((symbol, label, request, policy, rules), task)
            kinds.append(kind)
        if len(self._kinds) == 1:
            return [array("H", [place]).tobytes() * len(kinds) for place in kinds[0]]
        return [array("H", places).tobytes() for places in zip(*kinds, strict=True)]

    def _kind(self, key: tuple[object, ...], task: Task) -> Kind:
        try:
            kind = self._kinds.get(key)
        except TypeError:  # something unhashable among them
            kind = None
        if kind is None:
            kind = self._kinds[key] = self._new_kind(task)
        return kind

    def _new_kind(self, task: Task) -> Kind:
        symbol = _text(task, "type", task.task_type, MAX_SYMBOL_CHARS)
        if not symbol:
            raise InvalidPlan(f"{name_of(task)}: it has no task type")
        label = _text(task, "label", "" if task.label is None else task.label, MAX_LABEL_CHARS)
        request = _request(task)
        rules = task.rules or _NO_RULES
        if not isinstance(rules, Rules):
            raise InvalidPlan(f"{name_of(task)}: set its retries, time_limit_s and priority, not its rules")
        return Kind(
            self.symbols.setdefault(symbol, len(self.symbols)),
            self.labels.setdefault(label, len(self.labels)),
            self.requests.setdefault(request, len(self.requests)),
            self.rules.setdefault(rules, len(self.rules)),
        )


def check_checkpoint(task: Task) -> bytes:
    """The path of a task's checkpoint, as it travels. InvalidPlan where there can be none."""
    try:
        path = os.fsencode(task.checkpoint_path or "")
    except (TypeError, UnicodeEncodeError):
        raise InvalidPlan(f"{name_of(task)}: its checkpoint_path is no path: {task.checkpoint_path!r:.200}") from None
    if not os.path.isabs(path):
        raise InvalidPlan(
            f"{name_of(task)}: its checkpoint_path {task.checkpoint_path!r:.200} is not absolute; the workers write it,"
            " in a directory that they all see"
        )
    try:
        check_absolute(path)
    except ValueError as error:
        raise InvalidPlan(f"{name_of(task)}: its checkpoint_path {error}") from None
    if is_dynamic(task) or any(is_dynamic(source) for source in task.inputs):
        raise InvalidPlan(
            f"{name_of(task)}: it has a checkpoint_path and becomes several tasks (dslice, dget), which cannot all be"
            " written there; give the checkpoint to a task that puts them together, such as array_make or merge"
        )
    return path


def _text(task: Task, what: str, text: object, max_chars: int) -> str:
    if not isinstance(text, str):
        raise InvalidPlan(f"{name_of(task)}: its {what} is no str: {text!r:.200}")
    if len(text) > max_chars:
        raise InvalidPlan(f"{name_of(task)}: its {what} has {len(text)} characters (limit {max_chars})")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidPlan(f"{name_of(task)}: its {what} is no valid text: {text!r}") from None
    return text


def _request(task: Task) -> Request:
    """What the task asks for by its request and its policy."""
    request = task.resource_request
    if is_dynamic(task) and task.policy != "scheduler":
        raise InvalidPlan(f"{name_of(task)}: the server expands it, so its policy is 'scheduler', not {task.policy!r}")
    if request is not None and not isinstance(request, Request):
        raise InvalidPlan(
            f"{name_of(task)}: its resource_request is no request (tasks.cpus, tasks.resources): {request!r:.200}"
        )
    if request is not None and not is_valid(request):
        raise InvalidPlan(f"{name_of(task)}: its resource_request {request} is none that tasks.resources makes")
    match task.policy:
        case None | "standard":
            return request or _LIGHT
        case "simple":
            return _LIGHT
        case "scheduler":
            if is_dynamic(task):
                return _LIGHT
            raise InvalidPlan(
                f"{name_of(task)}: only tasks that the server expands (dslice, dget) have the policy 'scheduler'"
            )
    raise InvalidPlan(f"{name_of(task)}: its policy is {task.policy!r}, not one of {', '.join(sorted(POLICIES))}")
