"""What functions start ends with them: the executor's side.

An executor adopts orphans, so everything that a function started is below it, and gone when it has no child.
"""

import os
import sys
import time
from contextlib import suppress
from typing import Final

from loom.executors.removal import remove_folder
from loom.executors.trees import children_of, collect, end_children

# To fork takes more than this. What a thread starts that a function left running is found when the next longer function
# ends, or the executor has nothing to do.
QUICKEST_START_NS: Final = 20_000
_GIVE_UP_S: Final = 5.0
_TRACKER_S: Final = 2.0
_PAUSE_S: Final = 0.001


class StartedProcesses:
    """Processes that this one started before, as plugins do, are left alone."""

    def __init__(self) -> None:
        self._kept = set(children_of(os.getpid()))

    def end(self) -> None:
        """Kill and collect everything that functions have started; less than 2 us where that is nothing."""
        if "multiprocessing.util" in sys.modules:
            _remove_temporary_directory()
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        tracker = _running_tracker()
        left = end_children(self._kept | {tracker}, _GIVE_UP_S)
        if tracker:
            _end_tracker(tracker)
            left += end_children(self._kept.union(left), _GIVE_UP_S)
        if left:
            print(f"processes that a function has started cannot be ended: {left}", file=sys.stderr)
            self._kept.update(left)
        _forget_fork_server()


def _remove_temporary_directory() -> None:
    """The sockets of managers and queues that multiprocessing would remove if this process ended as others do."""
    process = sys.modules["multiprocessing.process"]
    directory = process.current_process()._config.pop("tempdir", None)
    if directory is not None:
        with suppress(OSError):
            remove_folder(directory)


def _running_tracker() -> int:
    """multiprocessing's tracker of shared memory and semaphores; 0 where there is none."""
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    return getattr(tracker, "_pid", None) or 0


def _end_tracker(pid: int) -> None:
    """Nobody is left to use what it tracks: told to end, it removes that; it is started again when it is needed."""
    tracker = sys.modules["multiprocessing.resource_tracker"]._resource_tracker
    os.close(tracker._fd)
    tracker._fd = tracker._pid = None
    deadline = time.monotonic() + _TRACKER_S
    while not collect(pid) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)


def _forget_fork_server() -> None:
    """It was killed and collected, which multiprocessing does not expect: let it start another when it needs one."""
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if getattr(server, "_forkserver_pid", None) is not None:
        assert server is not None
        os.close(server._forkserver_alive_fd)
        server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None
