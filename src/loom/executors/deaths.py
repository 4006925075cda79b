"""How a process ended, in words."""

import os
import signal
from contextlib import suppress
from typing import Final

NOT_LOADED_STATUS: Final = 78  # exit status of a worker that cannot load its plugins: to start it again is no use


def signal_text(number: int) -> str:
    """`signal 11 (SIGSEGV)`."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def reap(pid: int) -> int:
    """Collect a child that has ended; its exit status, or minus the signal that killed it."""
    _pid, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def end_text(exit_code: int) -> str:
    """`was killed by signal 9 (SIGKILL)` or `exited with status 3`, from what `reap` returned."""
    return f"was killed by {signal_text(-exit_code)}" if exit_code < 0 else f"exited with status {exit_code}"


def kill_group(leader: int) -> None:
    """Kill what is alive of a process group, named by its leader's pid."""
    with suppress(ProcessLookupError, PermissionError):  # none is left, or none of them is ours (a setuid program)
        os.killpg(leader, signal.SIGKILL)
