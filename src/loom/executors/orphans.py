"""What the runs of a worker leave behind, and whose it is.

A run is a program, or one life of an executor process. Its leader is a child of the worker, and in its environment
there is a mark, which everything that it starts inherits. When the leader is gone, what it has left becomes a child of
the worker, which adopts orphans (`trees`): it is known by its session or its mark, killed, and collected. What hides
both goes when no program is left that ran when it was first seen.
"""

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from loom.executors.trees import children_of, collect, end_children, kill_tree, kill_with_group, open_children

MARK: Final = "LOOM_RUN"  # the variable

_PAUSE_S: Final = 0.0005  # until what was killed is looked for again, doubled each time
_PAUSE_MAX_S: Final = 0.05
_PASSES: Final = 20  # in one look: some 100 us each
_WALK_S: Final = 0.005  # in one look, down from orphans: what hides there comes to us, too, when they are gone
_PATROL_S: Final = 5.0  # orphans that ended by themselves while no run did are collected this often
_GIVE_UP_S: Final = 10.0  # what does not end then is another user's (a setuid program), or stuck in the kernel
_ENVIRONMENT_BYTES: Final = 1 << 21  # looked at for the mark; the kernel allows more only where stacks are large

_log = logging.getLogger(__name__)


class _Run(NamedTuple):
    leader: int
    mark: str
    is_program: bool


class _Ending(NamedTuple):
    run: _Run
    until: float
    done: Callable[[], None]


class Orphans:
    """Belongs to the thread of the loop, which must be the main one: that is the one that orphans come to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._prefix = f"{os.getpid()}-{time.monotonic_ns():x}-"
        self._numbers = itertools.count(1)
        self._runs: dict[int, _Run] = {}  # that live, by leader
        self._ending: list[_Ending] = []
        self._owners: dict[int, set[_Run]] = {}  # of an orphan: the runs that it may belong to
        self._others = set(children_of(os.getpid()))  # which we leave alone
        self._list = open_children()
        self._pause_s = _PAUSE_S
        self._walk_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def new_mark(self) -> str:
        """The mark of a run that is about to start."""
        return f"{self._prefix}{next(self._numbers)}"

    def began(self, leader: int, mark: str, is_program: bool) -> None:
        self._runs[leader] = _Run(leader, mark, is_program)
        if self._timer is None:
            self._timer = self._loop.call_later(_PATROL_S, self._look)

    def ended(self, leader: int, done: Callable[[], None]) -> None:
        """The leader was collected: end what is left of its run, then call `done`; before this returns if that is
        nothing.
        """
        run = self._runs.pop(leader)
        if self._is_alone():
            done()
        else:
            self._pause_s = _PAUSE_S
            self._ending.append(_Ending(run, self._loop.time() + _GIVE_UP_S, done))
            self._look()

    def _is_alone(self) -> bool:
        """Whether there are only leaders: 2 us a program with this, instead of 30."""
        if self._list is None:
            return False
        return os.pread(self._list, 1 << 13, 0).count(b" ") == len(self._runs)

    def _look(self) -> None:
        """Kill and collect what belongs to no living run; then some runs may be over."""
        if self._timer is not None:
            self._timer.cancel()
        self._walk_until = time.monotonic() + _WALK_S
        living = set(self._runs.values())
        waited_for: dict[_Run, set[int]] = {ending.run: set() for ending in self._ending}
        for _ in range(_PASSES):
            if not sum(self._end_orphan(pid, living, waited_for) for pid in self._found()):
                break  # what is collected may have left us its own children since they were listed
        else:
            waited_for = {run: {0} for run in waited_for}  # who knows
        now = self._loop.time()
        over: list[_Ending] = []
        ending: list[_Ending] = []
        for one in self._ending:
            left = waited_for[one.run]
            if left and now > one.until:
                _log.warning("processes that a task has left cannot be ended: %s", sorted(left))
                self._others.update(left)
                left = set()
            (ending if left else over).append(one)
        self._ending = ending
        delay_s = _PATROL_S
        if ending:
            delay_s = self._pause_s
            self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        self._timer = self._loop.call_later(delay_s, self._look)
        for one in over:
            one.done()

    def _found(self) -> list[int]:
        return [pid for pid in children_of(os.getpid()) if pid not in self._runs and pid not in self._others]

    def _end_orphan(self, pid: int, living: set[_Run], waited_for: dict[_Run, set[int]]) -> bool:
        """Whether it is gone; if not, and nobody alive can have it, it soon will be."""
        if collect(pid):
            self._owners.pop(pid, None)
            return True
        owners = self._owners.get(pid)
        if owners is None:
            owners = self._owners[pid] = self._owners_of(pid)
        if owners.isdisjoint(living):
            if time.monotonic() < self._walk_until:
                kill_tree(pid)
            kill_with_group(pid)
            for run in owners & waited_for.keys():
                waited_for[run].add(pid)
        return False

    def _owners_of(self, pid: int) -> set[_Run]:
        living, ending = list(self._runs.values()), [one.run for one in self._ending]
        mark, session = _mark_of(pid), _session_of(pid)
        found = {run for run in (*living, *ending) if run.mark == mark or run.leader == session}
        if found or mark.startswith(self._prefix):  # none: it was forked while its run was being killed
            return found
        return {run for run in living if run.is_program}.union(ending)  # executors that live keep their orphans

    def end_all(self) -> None:
        """Wait until nothing is left but living runs; the loop stands still meanwhile."""
        left = end_children(self._others | self._runs.keys(), _GIVE_UP_S)
        if left:
            _log.warning("processes that tasks have left cannot be ended: %s", left)
        self._ending.clear()

    def close(self) -> None:
        """When every run is over."""
        self.end_all()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._list is not None:
            os.close(self._list)
            self._list = None


def _mark_of(pid: int) -> str:
    """Of a process, if it has one and lets it be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read(_ENVIRONMENT_BYTES).split(b"\0")
    except OSError:
        return ""
    prefix = f"{MARK}=".encode()
    return next((os.fsdecode(v.removeprefix(prefix)) for v in variables if v.startswith(prefix)), "")


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
