"""The states of a task in a worker.

WAITING -> READY -> QUEUED or RUNNING -> OVER; WAITING -> QUEUED behind what makes its inputs (`worker_chains`);
QUEUED -> READY or WAITING when an executor's queue is read back or its process is lost; WAITING and READY -> OVER when
given back; any -> OVER when cancelled.
"""

from typing import Final

WAITING: Final = 0  # some input is not here yet
READY: Final = 1  # waits for a core or an executor
QUEUED: Final = 2  # sent to an executor, which may be running it
RUNNING: Final = 3  # a program, or a built-in in the worker's loop
OVER: Final = 4

# Built-ins that only share their inputs' buffers: they run in the loop however large those are.
NEVER_TOUCHES_BYTES: Final = frozenset(
    {
        "loom/array/make",
        "loom/base/get",
        "loom/base/length",
        "loom/base/same",
        "loom/base/size",
        "loom/base/slice",
    }
)
