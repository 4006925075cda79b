"""The allocation queues of a server that may never have any: what they need is imported when there are some."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from loom.errors import LoomError

if TYPE_CHECKING:
    from loom.deploy.batch.queues import BatchQueues
    from loom.messages import Load


class LateQueues:
    """`BatchQueues`, from the first question on, or from the start where an earlier server has kept some."""

    def __init__(self, key_file: str | os.PathLike[str], *, stay: bool) -> None:
        self._key_file = key_file
        self._stay = stay
        self._queues: BatchQueues | None = None
        self._where: tuple[str, int] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def start(
        self,
        kept: bytes,
        keep: Callable[[bytes], None],
        load: Callable[[], Load],
        retire: Callable[[list[str]], object],
    ) -> None:
        self._given = kept, keep, load, retire
        if kept:
            self._found()

    def listens_at(self, host: str, port: int) -> None:
        with self._lock:
            self._where = host, port
            if self._queues is not None:
                self._queues.listens_at(host, port)

    def ask(self, question: bytes) -> bytes:
        return self._found().ask(question)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            queues = self._queues
        if queues is not None:
            queues.close()

    def _found(self) -> BatchQueues:
        with self._lock:
            if self._queues is None:
                if self._closed:
                    raise LoomError("the server stops")
                from loom.deploy.batch.queues import BatchQueues

                queues = BatchQueues(self._key_file, stay=self._stay)
                queues.start(*self._given)
                if self._where is not None:
                    queues.listens_at(*self._where)
                self._queues = queues
            return self._queues
