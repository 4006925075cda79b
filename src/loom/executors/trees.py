"""Finding and ending process trees, whatever their processes did to get away.

A process that adopts orphans (a "child subreaper") stays above everything that was started below it: what loses its
parent becomes its child. So nothing gets lost, and once it has no child it has no descendant.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from loom.executors.deaths import kill_group

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
# Lists of children are made by kernels with CONFIG_PROC_CHILDREN, which is most of them.
_LISTS: Final = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
_MANY: Final = 100  # processes are looked at in one walk, at 20 us each; the others come up when these are gone
_PAUSE_S: Final = 0.0002  # what was killed takes about as long to be gone, and a large process longer
_PAUSE_MAX_S: Final = 0.02
# The kernel ends the process with the most memory and the highest of these; tasks go before the worker that has them.
_OOM_SCORE_ABOVE: Final = 500
_OOM_SCORE_MAX: Final = 1000


def adopt_orphans() -> None:
    """What is below this process and loses its parent becomes a child of this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent(parent: int, number: signal.Signals) -> bool:
    """Have the kernel send this process a signal when its parent ends, however it ends; False: it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    return os.getppid() == parent


def children_of(pid: int) -> list[int]:
    """Its children, with those that have ended and were not collected."""
    return _lister()(pid)


def descendants(pid: int) -> list[int]:
    """What is below a process, parents before children. What forks meanwhile is missing, and the end of a long list."""
    list_children = _lister()
    found = list_children(pid)
    for child in found:  # which grows
        if len(found) > _MANY:
            break
        found += list_children(child)
    return found


def open_children() -> int | None:
    """The list of this process's children and of the orphans that came to it, to be read from the start again and
    again, each number followed by a space. None where the kernel makes no lists. Other threads' children are not in it.
    """
    return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC) if _LISTS else None


def _lister() -> Callable[[int], list[int]]:
    """Gives children as they are, or all were, now."""
    if _LISTS:
        return _listed_children
    found = _scan()
    return lambda pid: list(found.get(pid, ()))


def _listed_children(pid: int) -> list[int]:
    """From the lists of its threads, each of which has its own children."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def _scan() -> dict[int, list[int]]:
    """Children by parent, from the whole table of processes."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b") ")[2].split()[1])  # the name before it may hold anything
                found.setdefault(parent, []).append(int(name))
    return found


def kill_tree(pid: int) -> None:
    """Kill a process, its group if it leads one, and everything below it. What is forked meanwhile is orphaned."""
    for one in (pid, *descendants(pid)):
        kill(one)
    kill_group(pid)


def kill_with_group(pid: int) -> None:
    """Kill a process, which may be gone, and its group unless that is ours: at one blow, before one of it forks on."""
    kill(pid)
    with suppress(ProcessLookupError):
        group = os.getpgid(pid)
        if group != os.getpgrp():
            kill_group(group)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone, or not ours (a setuid program)
        os.kill(pid, signal.SIGKILL)


def collect(pid: int) -> bool:
    """Collect a child if it has ended; whether it is gone."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # somebody else has collected it
        return True


def end_children(kept: Collection[int], within_s: float) -> list[int]:
    """Kill and collect everything below this process, which adopts orphans, but these children and what is below them.

    Returns what has not ended within the time: another user's (a setuid program), or stuck in the kernel.
    """
    deadline = time.monotonic() + within_s
    pause_s = _PAUSE_S
    while True:
        found = [pid for pid in children_of(os.getpid()) if pid not in kept]
        left = [pid for pid in found if not collect(pid)]
        if not left:
            if not found:
                return []
            continue  # what was collected may have left us its own children since they were listed
        if time.monotonic() > deadline:
            return left
        for pid in left:
            kill_with_group(pid)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSE_MAX_S)


def end_below(directory: str, within_s: float) -> list[int]:
    """Kill this user's processes that work somewhere below a directory, except this one and those that it is below.

    Returns what has not ended within the time.
    """
    place = os.path.realpath(directory) + "/"
    deadline = time.monotonic() + within_s
    pause_s = _PAUSE_S
    while True:
        left = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_below(pid, place)]
        if left:
            kept = _ancestors()
            left = [pid for pid in left if pid not in kept]
        if not left or time.monotonic() > deadline:
            return left
        for pid in left:
            kill(pid)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSE_MAX_S)


def _is_below(pid: int, place: str) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.getuid() and os.readlink(f"/proc/{pid}/cwd").startswith(place)
    except OSError:  # it has ended, or it is not ours
        return False


def _ancestors() -> set[int]:
    """This process and what it is below."""
    parents = {child: parent for parent, children in _scan().items() for child in children}
    found: set[int] = set()
    pid = os.getpid()
    while pid and pid not in found:
        found.add(pid)
        pid = parents.get(pid, 0)
    return found


def task_oom_score() -> bytes:
    """What processes of tasks have as their oom_score_adj."""
    try:
        with open("/proc/self/oom_score_adj", "rb") as file:
            own = int(file.read())
    except OSError:
        own = 0
    return b"%d" % min(own + _OOM_SCORE_ABOVE, _OOM_SCORE_MAX)


def set_oom_score(pid: int, score: bytes) -> None:
    """Say how soon the kernel is to end this process where memory runs out."""
    with suppress(OSError):  # it is over, or not ours
        file = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, score)
        finally:
            os.close(file)
