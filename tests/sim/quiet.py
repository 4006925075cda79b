"""Simulated clusters in which nothing goes wrong, to see how well work is spread.

Time is virtual: work costs nothing but its own duration, and a frame takes a tenth of a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from loom.core.columns import ids_column
from loom.limits import CLIENT_CREDIT_BYTES, LINEAGE_BYTES
from loom.messages import Message, OpenSession, Release, ResultsReady, SubmitChunk
from loom.resources import cpu1
from loom.sim.clock import Clock
from loom.sim.ledger import Ledger
from loom.sim.network import End, Speeds
from loom.sim.server import SimServer
from loom.sim.tasks import OK, Spec, encode_spec
from loom.sim.worker import SimWorker
from loom.sim.world import Chances, World
from loom.tasktypes.plan import Task, encode_plan

_FAST: Final = Speeds(latency_s=0.0001, jitter_s=0.0, bytes_per_s=1e9, high_water_bytes=1 << 30, notice_s=0.01)
_PLAIN: Final = Chances(
    largest_plan=0, turn_s=0.0, split_frames=False, slow_loop=False, fetch_fails=0.0, not_inline=0.0
)


class QuietWorld(World):
    """One worker for each of `speeds`, with `cpus` cores."""

    def __init__(self, speeds: Sequence[float], cpus: int = 1) -> None:
        self.rng = Random(1)
        self.clock = Clock()
        self.chances = _PLAIN
        self.extras = ()
        self.saved = set()
        self.crash_limit, self.lineage_bytes = 3, LINEAGE_BYTES
        self.workers = []
        self.clients = []
        self._say = None
        self._speeds = _FAST
        self._parted = {}
        self._runs = {}
        self._faults = None
        self.server = SimServer(self, None)
        self.ledger = Ledger(self.server.core)
        for speed in speeds:
            self.join(speed, cpus)

    def join(self, speed: float = 1.0, cpus: int = 1) -> SimWorker:
        worker = SimWorker(self, len(self.workers) + 1, cpus, speed=speed)
        for executor in worker.executors:
            executor._capacity, executor._claims = 1000, 1
        self.workers.append(worker)
        return worker

    def count_run(self, task: int) -> int:
        return 1

    def run_until(self, condition: Callable[[], bool]) -> float:
        """The time at which it holds."""
        while not condition():
            assert self.clock.fire_next(), "nothing goes on any more"
        return self.clock.now


class Bag:
    """A client that submits independent functions that take so long, and waits for them."""

    def __init__(self, world: QuietWorld, durations_us: Sequence[int]) -> None:
        self.began_at = world.clock.now
        self.missing = set(range(len(durations_us)))
        specs = [Spec(salt, OK, duration_us, 8) for salt, duration_us in enumerate(durations_us)]
        tasks = [Task("sim/executor", (), encode_spec(spec), cpu1) for spec in specs]
        self._end = world.connect("client", self)
        self._end.send([OpenSession(b"token", CLIENT_CREDIT_BYTES, "", "", False)])
        self._seq = 0
        for chunk in encode_plan(tasks, 0, lambda _: 0):
            self._seq += 1
            self._end.send([SubmitChunk(self._seq, chunk, [])])

    def on_messages(self, end: End, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, ResultsReady):
                numbers = [result.number for result in message.results]
                self.missing.difference_update(numbers)
                self._seq += 1
                self._end.send([Release(self._seq, ids_column(numbers), 0)])

    def on_broken(self, end: End) -> None:
        raise AssertionError("the server has closed the link")

    def on_full(self, end: End) -> None:
        """Everything has been said."""

    def on_drained(self, end: End) -> None:
        """Everything has been said."""

    def is_done(self) -> bool:
        return not self.missing
