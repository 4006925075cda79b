"""The process above a worker: it waits, and removes what a worker leaves that did not end in good order.

It does nothing else, so that nothing kills it but somebody who means to. If that happens the worker leaves by itself.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from loom.executors.trees import adopt_orphans, end_children, end_with_parent

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_WAITED_FOR: Final = frozenset((*_PASSED_ON, signal.SIGQUIT, signal.SIGCHLD))
_GIVE_UP_S: Final = 10.0
_NAME: Final = "loom-supervisor"  # as process tables show it; the kernel takes 15 characters


def supervise(sweep: Callable[[], None]) -> None:
    """Fork. The child returns, to be the worker; it has SIGINT when its supervisor is killed.

    The supervisor never returns: when the worker has ended, however it did, it kills what is left of its tasks, calls
    `sweep`, and ends as the worker has. SIGTERM, SIGINT and SIGHUP go to the worker; SIGQUIT kills it.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    gc.freeze()  # the memory of both stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as it may have been for us, nobody could be waited for
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)  # none is lost on the way to sigwaitinfo
    supervisor = os.getpid()
    worker = os.fork()
    if worker == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.setpgid(0, 0)  # who kills the group that was started (a shell's job) does not kill both
        adopt_orphans()
        if not end_with_parent(supervisor, signal.SIGINT):
            sys.exit(1)
        return
    try:
        status = _watch(worker, sweep)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    _end_as(status)


def _watch(worker: int, sweep: Callable[[], None]) -> int:
    """The status of the worker when it and everything below it is gone."""
    adopt_orphans()
    _take_name()
    status = _wait(worker)
    left = end_children((), _GIVE_UP_S)
    if left:
        print(f"processes that the worker has left cannot be ended: {left}", file=sys.stderr, flush=True)
    sweep()
    return status


def _wait(worker: int) -> int:
    while True:
        said = signal.sigwaitinfo(_WAITED_FOR)
        if said.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(worker, os.WNOHANG)
            if pid:
                return status
        elif said.si_signo == signal.SIGQUIT:
            os.kill(worker, signal.SIGKILL)
        else:
            os.kill(worker, said.si_signo)


def _end_as(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core dump is enough
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _take_name() -> None:
    """So that people (and tests) see which of two processes with the same command is the worker."""
    with open("/proc/self/comm", "w") as file:
        file.write(_NAME)
