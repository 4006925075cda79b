"""Plans of all shapes, small and awkward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from loom.resources import Request
from loom.sim.tasks import CRASH, FAIL, OK, REDIRECT, UNKNOWN, Spec, SubTask, encode_spec
from loom.tasktypes.plan import Reference, Task

_SIZES: Final = (0, 10, 100, 3_000, 20_000, 300_000, 2_000_000)
_MAX_NESTING: Final = 3


class Maker:
    """Makes tasks by chance. `max_cpus` is the widest request; shares are chances of one task."""

    def __init__(self, rng: Random, max_cpus: int, fail_share: float, redirect_share: float) -> None:
        self.rng = rng
        self._max_cpus = max_cpus
        self._fail_share = fail_share
        self._redirect_share = redirect_share
        self._salt = 0
        self._usual_us = rng.choice((20, 200, 5_000, 100_000))
        self._place = rng.choice(("sim/inline", "sim/executor", "sim/program", ""))

    def task(self, inputs: Sequence[Task | Reference] = ()) -> Task:
        symbol, cpus, config = self._what(len(inputs), 0)
        label = self.rng.choice(("", "a", "b:1", "b:2"))
        return Task(symbol, tuple(inputs), config, Request(cpus) if cpus else None, label)

    def _what(self, n_inputs: int, nesting: int) -> tuple[str, int, bytes]:
        rng = self.rng
        symbol = self._place or rng.choice(("sim/inline", "sim/executor", "sim/program"))
        chance = rng.random()
        outcome = OK
        if chance < self._fail_share:
            outcome = rng.choice((FAIL, FAIL, CRASH))
            if rng.random() < 0.1:
                symbol = UNKNOWN
        elif chance < self._fail_share + self._redirect_share and nesting < _MAX_NESTING:
            outcome = REDIRECT
        if outcome in (CRASH, REDIRECT):
            symbol = "sim/executor"
        self._salt += 1
        duration_us = int(self._usual_us * rng.lognormvariate(0, 1)) if symbol != "sim/inline" else rng.randint(1, 30)
        if rng.random() < 0.03 and symbol != "sim/inline":
            duration_us *= 30
        spec = Spec(self._salt, outcome, duration_us, rng.choice(_SIZES))
        if outcome == REDIRECT:
            spec.plan = self._subplan(n_inputs, nesting + 1)
        cpus = 0 if symbol == "sim/inline" else rng.choice((0, 1, 1, 1, 1, rng.randint(1, self._max_cpus)))
        return symbol, cpus, encode_spec(spec)

    def _subplan(self, n_inputs: int, nesting: int) -> list[SubTask]:
        rng = self.rng
        plan: list[SubTask] = []
        for row in range(rng.randint(1, 4)):
            inputs = [rng.randrange(-n_inputs, row) for _ in range(rng.randint(0, 3)) if row + n_inputs]
            symbol, cpus, config = self._what(len(inputs), nesting)
            plan.append(SubTask(symbol, cpus, inputs, config))
        return plan


Sources = Sequence[Task | Reference]
Workload = Callable[[Maker, Sources, int], list[Task]]


def bag(maker: Maker, given: Sources, size: int) -> list[Task]:
    shared = maker.task(given)
    return [maker.task([shared]) for _ in range(size)]


def chain(maker: Maker, given: Sources, size: int) -> list[Task]:
    task = maker.task(given)
    for _ in range(size):
        task = maker.task([task])
    return [task]


def stencil(maker: Maker, given: Sources, size: int) -> list[Task]:
    width = maker.rng.randint(2, 6)
    row = [maker.task(given[:1]) for _ in range(width)]
    for _ in range(max(1, size // width)):
        row = [maker.task(row[max(0, i - 1) : i + 2]) for i in range(width)]
    return row


def tree(maker: Maker, given: Sources, size: int) -> list[Task]:
    layer = [maker.task(given[:1]) for _ in range(size)]
    while len(layer) > 1:
        layer = [maker.task(layer[i : i + 3]) for i in range(0, len(layer), 3)]
    return layer


def fan_in(maker: Maker, given: Sources, size: int) -> list[Task]:
    leaves = [maker.task(given[:1]) for _ in range(size)]
    return [maker.task([*leaves, leaves[0]])]


def random_dag(maker: Maker, given: Sources, size: int) -> list[Task]:
    """Inputs repeat, some tasks are submitted although others consume them."""
    rng = maker.rng
    tasks: list[Task] = []
    used: set[Task] = set()
    for _ in range(size):
        near: Sources = [*given, *tasks[-12:]]
        inputs = [rng.choice(near) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5))) if near]
        used.update(i for i in inputs if isinstance(i, Task))
        tasks.append(maker.task(inputs))
    return [task for task in tasks if task not in used or rng.random() < 0.2]


WORKLOADS: Final[tuple[Workload, ...]] = (bag, chain, stencil, tree, fan_in, random_dag, random_dag)
