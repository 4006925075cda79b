"""What a process of a task has of its own: variables beyond those of the worker, and cores."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from contextlib import suppress
from typing import TypeAlias

Variables: TypeAlias = tuple[tuple[str, str], ...]

_log = logging.getLogger(__name__)


def pin_program(pid: int, cores: Collection[int]) -> None:
    """Keep a process that has just been started, and what it starts, to these cores."""
    try:
        os.sched_setaffinity(pid, cores)
    except OSError as error:  # it is over, or another user's (setuid), or the core was taken away: it runs all the same
        _log.debug("process %d is not pinned: %s", pid, error)


def pin_threads(pid: int, cores: Collection[int]) -> None:
    """Keep all present threads of a process to these cores, and those that they start."""
    pin_program(pid, cores)
    with suppress(FileNotFoundError, ProcessLookupError):  # it is over
        for thread in os.listdir(f"/proc/{pid}/task"):
            if int(thread) != pid:
                pin_program(int(thread), cores)
