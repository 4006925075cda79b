"""What all faults have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import ClassVar, Final

from chaos.client import Spec
from chaos.cluster import ClientProcess, Cluster, Process, Setup

_PAUSE_S: Final = 0.05


class Run:
    """A run as faults see it."""

    def __init__(self, cluster: Cluster, client: ClientProcess, rng: Random) -> None:
        self.cluster = cluster
        self.client = client
        self.rng = rng
        self.spared: list[Process] = []

    def goes_on(self, seconds: float) -> bool:
        """Wait so long; False as soon as the client has all its results."""
        deadline = time.monotonic() + seconds
        while self.works():
            if time.monotonic() >= deadline:
                return True
            time.sleep(_PAUSE_S)
        return False

    def works(self) -> bool:
        """Whether anybody still waits for results."""
        return self.client.alive and not self.client.said("delivered")

    def between(self, least_s: float, most_s: float) -> bool:
        return self.goes_on(self.rng.uniform(least_s, most_s))

    def strikes(self, n: int, least_s: float, most_s: float) -> Iterator[Process]:
        """A worker at a time, `n` times at most, at random times, while the client works."""
        for _ in range(n):
            if not self.between(least_s, most_s):
                return
            worker = self.some_worker()
            if worker is not None:
                yield worker

    def some_worker(self) -> Process | None:
        workers = self.cluster.living_workers()
        return self.rng.choice(workers) if workers else None

    def victims(self) -> list[Process]:
        """Workers that may be killed, or told to leave."""
        return [worker for worker in self.cluster.living_workers() if worker not in self.spared]

    def some_victim(self) -> Process | None:
        victims = self.victims()
        return self.rng.choice(victims) if victims else None

    def replace_dead(self) -> None:
        """As whoever starts workers would do."""
        while len(self.cluster.living_workers()) < self.cluster.setup.n_workers:
            self.cluster.add_worker()


class Fault:
    """`missing` says why it cannot be done here. `prepare` changes how things are started and what the client does;
    `act` does harm until the client is through; `heal` puts right what would be in the way of what is left to check.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    repeats: ClassVar[bool] = True  # whether it is a reason to run a task again
    most_repeated: ClassVar[int | None] = None  # for each kill of the server, where nothing else is a reason
    needs_journal: ClassVar[bool] = False  # else some runs have one

    def missing(self) -> str:
        return ""

    def before(self, directory: Path) -> None:
        """First of all, before the run's processes are started."""

    def after(self) -> None:
        """Last of all, when they are gone."""

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        pass

    def act(self, run: Run) -> None:
        """Here: the tasks do it themselves."""
        while run.goes_on(1):
            pass

    def heal(self, run: Run) -> None:
        pass

    def trouble(self, run: Run) -> list[str]:
        """What only this fault can tell, in the end."""
        return []
