"""The executor's side of reporting: each record at once into the ring, the worker woken as seldom as can be."""

import os
import socket
from threading import Lock
from time import perf_counter_ns
from typing import Final

from msgspec.msgpack import Encoder

from loom.executors.parcels import send_parcel
from loom.executors.ring import ResultRing
from loom.messages import ExecutorLog, ExecutorResult

WAKE_INTERVAL_NS: Final = 2_000_000  # a wake-up costs both sides some 20 us; results may wait this long for one


class Reporter:
    """Publishes records. Threads of a user's function may log while the next task runs, hence the lock."""

    def __init__(self, ring: ResultRing, wake: int, overflow: socket.socket) -> None:
        self._ring = ring
        self._wake = wake
        self._overflow = overflow
        self._lock = Lock()
        self._encode = Encoder().encode
        self._unseen = False  # something was published since the last wake-up
        self._woken_ns = 0

    def publish(self, record: ExecutorResult | ExecutorLog) -> None:
        """Make the record outlive this process; waits where neither the ring nor the socket has room."""
        body = self._encode(record)
        with self._lock:
            if not self._ring.publish(body):
                send_parcel(self._overflow, body, [])
            self._unseen = True
        if perf_counter_ns() - self._woken_ns > WAKE_INTERVAL_NS:
            self.wake()

    def wake(self) -> None:
        """Have the worker look, if there is anything that it was not woken for."""
        if self._unseen:
            self._unseen = False
            self._woken_ns = perf_counter_ns()
            os.eventfd_write(self._wake, 1)
