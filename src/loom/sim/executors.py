"""One simulated executor process after the other: a queue whose claimed part cannot be read back, results that are
published at once and seen later, and deaths."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from loom.core.worker_tasks import Run, Task
from loom.sim.clock import Clock, Timer
from loom.sim.tasks import CRASH, SimObject, Spec, error_of, spec_of

Job = tuple[Task, list[SimObject | None]]  # None: what one of those before it is to make


class Lost(NamedTuple):
    running: Run | None
    story: str


class SimExecutor:
    """`on_results` is given finished jobs; `on_lost` follows when the process dies. At `speed` 0.5 all takes twice as
    long.
    """

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        speed: float,
        on_results: Callable[[list[Job]], None],
        on_lost: Callable[[Lost], None],
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._speed = speed
        self._on_results = on_results
        self._on_lost = on_lost
        self._capacity = rng.choice((3, 20, 1000))
        self._claims = rng.choice((1, 1, 3))
        self._queue: deque[Job] = deque()
        self._claimed: deque[Job] = deque()  # the first is running
        self._published: list[Job] = []
        self._running: Timer | None = None
        self._seen: Timer | None = None
        self._began_at = 0.0
        self.alive = True

    @property
    def running(self) -> Task | None:
        return self._claimed[0][0] if self._claimed else None

    @property
    def ran_s(self) -> float:
        """How long the running task has been running."""
        return self._clock.now - self._began_at

    @property
    def is_idle(self) -> bool:
        return not (self._queue or self._claimed or self._published)

    def give(self, jobs: list[Job]) -> list[Job]:
        """Queue jobs; returns those for which there is no room."""
        room = self._capacity - len(self._queue) if self.alive else 0
        self._queue.extend(jobs[:room])
        self._go_on()
        return jobs[max(0, room) :]

    def read_back(self, count: int) -> list[Task]:
        count += self._rng.choice((0, 0, 2))  # whole messages: there may be some more
        return [self._queue.popleft()[0] for _ in range(min(count, len(self._queue)))]

    def kill(self, story: str) -> None:
        """The process dies; what it had published is seen first."""
        if not self.alive:
            return
        self.alive = False
        for timer in (self._running, self._seen):
            if timer is not None:
                timer.cancel()
        self._running = None
        self._deliver()
        running = self.running
        self._queue.clear()
        self._claimed.clear()
        self._on_lost(Lost((running.id, running.attempt) if running is not None else None, story))

    def restart(self) -> None:
        self.alive = True

    def _go_on(self) -> None:
        if self._running is not None or not self.alive:
            return
        if not self._claimed:
            for _ in range(min(self._claims, len(self._queue))):
                self._claimed.append(self._queue.popleft())
        if self._claimed:
            self._began_at = self._clock.now
            task = self._claimed[0][0]
            spec = spec_of(task.kind.symbol, task.config)
            self._running = self._clock.after(spec.duration_us / 1e6 / self._speed, lambda: self._finish(spec))

    def _finish(self, spec: Spec) -> None:
        self._running = None
        if spec.outcome == CRASH:
            self.kill(error_of(spec))
            return
        self._published.append(self._claimed.popleft())
        if self._seen is None:
            idle = not self._claimed and not self._queue
            self._seen = self._clock.after(0.0 if idle else 0.001, self._deliver)
        self._go_on()

    def _deliver(self) -> None:
        self._seen = None
        published, self._published = self._published, []
        if published:
            self._on_results(published)
