"""Names: of sessions that outlive their clients, and of results in them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from loom.errors import InvalidPlan, LoomError
from loom.limits import MAX_NAME_CHARS
from loom.messages import PlanChunk
from loom.tasktypes.task import Task, is_dynamic

if TYPE_CHECKING:
    from loom.client.future import Future
    from loom.tasktypes.plan import EncodedPlan

_SOME: Final = 5  # so many names are listed in an error message


def check_name(name: object, what: str) -> str:
    """The name; LoomError where it is none that a session or a result (`what`) can have."""
    if not isinstance(name, str):
        raise LoomError(f"{name!r:.200} is no name of a {what}: write a str")
    if not name or len(name) > MAX_NAME_CHARS:
        raise LoomError(f"{name!r:.220} is no name of a {what}: it has from 1 to {MAX_NAME_CHARS} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise LoomError(f"{name!a} is no name of a {what}: it is no valid text") from None
    return name


def check_names(names: object, tasks: Sequence[Task]) -> list[str | None]:
    """One for each task, or None; LoomError where that is not so, InvalidPlan where a task can have none."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise LoomError(f"names={names!r:.200}: write a list with a name for each task, None where it has none")
    checked = [None if name is None else check_name(name, "result") for name in names]
    if len(checked) != len(tasks):
        raise LoomError(f"{len(checked)} names for {len(tasks)} tasks: write None for a task that has no name")
    seen = set()
    for name, task in zip(checked, tasks, strict=True):
        if name is None:
            continue
        if name in seen:
            raise LoomError(f"two results are to have the name {name!r}")
        if isinstance(task, Task) and is_dynamic(task):  # whoever takes the session up could not know what it is
            raise InvalidPlan(f"{task!r} becomes several results, so it has no name: name what puts them together")
        seen.add(name)
    return checked


def names_by_number(plan: EncodedPlan, names: Sequence[str | None]) -> list[tuple[int, str]]:
    """In the order of numbers. LoomError where a task that was submitted twice is to have two names."""
    found: dict[int, str] = {}
    for number, name in zip(plan.numbers, names, strict=True):
        if name is not None and found.setdefault(number, name) != name:
            raise LoomError(f"one task is to have the names {found[number]!r} and {name!r}")
    return sorted(found.items())


def names_within(chunk: PlanChunk, named: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Those of the results in this chunk."""
    if not named:
        return []
    return list(named[bisect_left(named, (chunk.first, "")) : bisect_left(named, (chunk.first + len(chunk.flags), ""))])


class Names:
    """The names in a session and their futures in this process. Its user sees to it that threads take turns."""

    def __init__(self, numbers: Iterable[tuple[int, str]]) -> None:
        self._numbers = {name: number for number, name in numbers}
        self._futures: WeakValueDictionary[str, Future] = WeakValueDictionary()  # a client is not kept by its futures

    def check_free(self, names: Iterable[str | None]) -> None:
        for name in names:
            if name in self._numbers:
                raise LoomError(
                    f"there is a result named {name!r} in this session: client.future({name!r}) gives it,"
                    " and frees the name when it is released or gathered"
                )

    def add(self, name: str, future: Future) -> None:
        self._numbers[name] = future.task_id
        self._futures[name] = future

    def future(self, name: str) -> Future | None:
        """The one that lives in this process, if one does."""
        return self._futures.get(name)

    def number(self, name: object) -> int:
        """LoomError, with some of the names there are, where this is none of them."""
        if isinstance(name, str) and name in self._numbers:
            return self._numbers[name]
        there = ", ".join(repr(name) for name in self.listed()[:_SOME]) or "none"
        more = f" and {len(self._numbers) - _SOME} more" if len(self._numbers) > _SOME else ""
        raise LoomError(f"no result is named {name!r:.200} in this session; there are: {there}{more}")

    def listed(self) -> list[str]:
        return sorted(self._numbers)

    def forget(self, name: str) -> None:
        """The name is free again."""
        del self._numbers[name]
        self._futures.pop(name, None)
