"""What all faults have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import ClassVar

from chaos.client import Spec
from chaos.cluster import ClientProcess, Cluster, Process, Setup

Waiter = Callable[[float], bool]


class Run:
    """A run as faults see it."""

    def __init__(self, cluster: Cluster, client: ClientProcess, rng: Random, wait: Waiter) -> None:
        self.cluster = cluster
        self.client = client
        self.rng = rng
        self._wait = wait

    def goes_on(self, seconds: float) -> bool:
        """Wait so long; False as soon as the client has all its results."""
        return self._wait(seconds)

    def between(self, least_s: float, most_s: float) -> bool:
        return self._wait(self.rng.uniform(least_s, most_s))

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
