"""Objects are saved by threads of their own: a file system may be slow, and the loop must not wait for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from loom.data.base import DataObject
from loom.data.space import is_full, room_text
from loom.tasktypes.saving import write_checkpoint
from loom.trace.writer import now_us
from loom.worker.store import Store
from loom.worker.tracing import WorkerTrace

_log = logging.getLogger(__name__)

_THREADS: Final = 4  # network file systems are faster with some writes at a time


class CheckpointWriter:
    """`done(object, error)` is called in the loop; `error` is empty where the file is in place."""

    def __init__(self, store: Store, trace: WorkerTrace, done: Callable[[int, str], None]) -> None:
        self._store = store
        self._trace = trace
        self._done = done
        self._threads: ThreadPoolExecutor | None = None
        self._writing: set[asyncio.Task[None]] = set()

    def write(self, object_id: int, path: bytes) -> None:
        """Save an object; from now on it may be dropped from the store."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "loom-checkpoint")
        saving = self._write(self._threads, object_id, self._store.get(object_id), path)
        task = asyncio.get_running_loop().create_task(saving)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, threads: ThreadPoolExecutor, object_id: int, value: DataObject, path: bytes) -> None:
        begun_us = now_us()
        size_bytes = 0
        error = ""
        try:
            size_bytes = await asyncio.get_running_loop().run_in_executor(threads, write_checkpoint, path, value)
        except Exception as problem:  # whatever it is: somebody waits for the answer
            name = path.decode("utf-8", "backslashreplace")
            reason = problem.strerror if isinstance(problem, OSError) else repr(problem)
            if is_full(problem):
                reason = f"{reason}: {room_text(name)}"
            error = f"The checkpoint {name} cannot be written: {reason}"
            _log.warning("%s", error)
        if self._trace.on:
            self._trace.checkpoint_saved(object_id, size_bytes, begun_us, error)
        self._done(object_id, error)

    async def finish(self) -> None:
        """Wait for what is being written: who asked for a checkpoint wants it, even if its plan is over."""
        if self._writing:
            _log.info("waiting for %d checkpoints", len(self._writing))
            await asyncio.wait(self._writing)
        if self._threads is not None:
            self._threads.shutdown()
