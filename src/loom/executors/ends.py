"""Notices that programs end: their descriptors are in one set, which the loop watches."""

import asyncio
import os
import select
from collections.abc import Callable


class Ends:
    """Of children of this process. To have the loop watch each for itself costs five times as much."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}  # by descriptor
        loop.add_reader(self._ready.fileno(), self._look)

    def watch(self, pid: int, ended: Callable[[], None]) -> int:
        """Call `ended` once the process has ended, until `forget` is called with what this returns. OSError where there
        are no more descriptors.
        """
        descriptor = os.pidfd_open(pid)
        try:
            self._ready.register(descriptor, select.EPOLLIN)
        except BaseException:
            os.close(descriptor)
            raise
        self._watched[descriptor] = ended
        return descriptor

    def forget(self, descriptor: int) -> None:
        del self._watched[descriptor]
        self._ready.unregister(descriptor)  # to close it is not enough where a fork has it, too
        os.close(descriptor)

    def close(self) -> None:
        """When nothing is watched any more. Twice is once."""
        assert not self._watched
        if self._ready.closed:
            return
        self._loop.remove_reader(self._ready.fileno())
        self._ready.close()

    def _look(self) -> None:
        for descriptor, _events in self._ready.poll(0):
            ended = self._watched.get(descriptor)
            if ended is not None:  # what was told before it has not forgotten it
                ended()
