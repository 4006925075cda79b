"""The file systems of a worker: which are in memory, and whether one of them is full."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Callable
from typing import Final

from loom.data.space import free_bytes, has_room, space_text

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_LOOK_S: Final = 0.5
# A worker that had no room for one object takes others when there is room for that one, or after this time: it may
# never fit, and those that are smaller should not wait for it.
_PATIENCE_S: Final = 30.0
_COLLECT_S: Final = 5.0

_log = logging.getLogger(__name__)


def is_in_memory(path: str) -> bool:
    """Whether a directory lies on a file system in memory."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                mount, _, what = line.partition(" - ")
                if mount.split(" ", 3)[2] == number:
                    return what.split(" ", 1)[0] in _IN_MEMORY
    except OSError:
        pass
    return False


class DiskWatch:
    """Remembers what was full, and looks from time to time whether there is room again.

    `changed` is called whenever `full` has changed.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.full = False
        self._changed = changed
        self._places: dict[str, tuple[int, float]] = {}  # bytes that had no room there, and when
        self._timer: asyncio.TimerHandle | None = None
        self._collected_at = 0.0

    def hit(self, path: str, wanted_bytes: int = 0) -> None:
        """A write to the file system of this directory has found no room."""
        loop = asyncio.get_running_loop()
        self._places[path] = wanted_bytes, loop.time()
        if not self.full:
            self.full = True
            _log.warning("%s", space_text(path))
            self._timer = loop.call_later(_LOOK_S, self._look)
            self._changed()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._collected_at >= _COLLECT_S:
            self._collected_at = now
            gc.collect()  # an error may hold an object in a cycle, which this worker would look for some other day
        for path, (wanted_bytes, since) in list(self._places.items()):
            try:
                patient = now - since < _PATIENCE_S
                if not has_room(path) or (patient and free_bytes(path) < wanted_bytes):
                    continue
            except OSError:
                pass  # it is not there any more
            del self._places[path]
        if self._places:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        else:
            self._timer = None
            self.full = False
            _log.info("there is room again in the file systems of this worker")
            self._changed()
