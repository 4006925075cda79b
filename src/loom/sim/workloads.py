"""Plans of all shapes, small and awkward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from random import Random
from typing import Final

from loom import tasks
from loom.resources import GPU_PARTS, GPUS, Request
from loom.sim.tasks import (
    BAD_PATH,
    CRASH,
    FAIL,
    FLAKY,
    MOST_ELEMENTS,
    OK,
    REDIRECT,
    UNKNOWN,
    Spec,
    SubTask,
    encode_spec,
    set_rules,
    spec_of,
)
from loom.tasktypes.task import Reference, Task, is_dynamic

_SIZES: Final = (0, 10, 100, 3_000, 20_000, 300_000, 2_000_000)
_MAX_NESTING: Final = 3
_MOST_PARTS: Final = 40  # of one task: expansions multiply


class Maker:
    """Makes tasks by chance. `max_cpus` is the widest request, `extras` the largest; shares are chances of one task."""

    def __init__(
        self, rng: Random, max_cpus: int, extras: Sequence[tuple[str, int]], fail_share: float, redirect_share: float
    ) -> None:
        self.rng = rng
        self._max_cpus = max_cpus
        self._fail_share = fail_share
        self._redirect_share = redirect_share
        self._salt = 0
        self._usual_us = rng.choice((20, 200, 5_000, 100_000, 1_000_000, 1_000_000))
        self._dynamic_share = rng.choice((0.0, 0.0, 0.05, 0.15))
        self._checkpoint_share = rng.choice((0.0, 0.0, 0.2))
        self._checkpoint_dir = b"/saved/" if fail_share == 0.0 or rng.random() < 0.5 else BAD_PATH
        self._extras = extras
        self._flaky_share = rng.choice((0.0, 0.0, 0.1))
        self._limit_share = rng.choice((0.0, 0.0, 0.1))
        self._priority_share = rng.choice((0.0, 0.0, 0.5))
        self._n_parts: dict[Task, int] = {}
        self._place = rng.choice(("sim/inline", "sim/executor", "sim/program", ""))

    def task(self, inputs: Sequence[Task | Reference] = ()) -> Task:
        rng = self.rng
        if inputs and self._dynamic_share and rng.random() < self._dynamic_share:
            source = rng.choice(inputs)
            n_parts = MOST_ELEMENTS * self.n_parts(source)
            if n_parts <= _MOST_PARTS:
                task = rng.choice((tasks.dget, tasks.dslice) if n_parts == MOST_ELEMENTS else (tasks.dget,))(source)
                self._n_parts[task] = n_parts
                return task
        n_copies = prod(self.n_parts(source) for source in dict.fromkeys(inputs) if is_dynamic(source))
        if n_copies > _MOST_PARTS:
            inputs = [source for source in inputs if not is_dynamic(source)]
            n_copies = 1
        symbol, cpus, config = self._what(len(inputs), 0)
        label = rng.choice(("", "a", "b:1", "b:2"))
        task = Task(symbol, tuple(inputs), config, self._request(cpus), label)
        set_rules(task, spec_of(symbol, config))
        if self._priority_share and rng.random() < self._priority_share:
            task.priority = rng.choice((-1, 1, 5))
        if n_copies > 1 or any(is_dynamic(source) for source in inputs):
            self._n_parts[task] = n_copies
        elif self._checkpoint_share and rng.random() < self._checkpoint_share:
            task.checkpoint_path = (self._checkpoint_dir + b"%d" % self._salt).decode()
        return task

    def n_parts(self, source: Task | Reference) -> int:
        """What it is expanded to, at most; 1 where it is not."""
        if isinstance(source, Task):
            return self._n_parts.get(source, 1)
        return int(getattr(source, "n_parts", 1))

    def _request(self, cpus: int) -> Request | None:
        if not cpus:
            return None
        extras = [(name, self.rng.randint(1, amount)) for name, amount in self._extras if self.rng.random() < 0.3]
        parts = [(n, a if n != GPUS or a < GPU_PARTS else a // GPU_PARTS * GPU_PARTS) for n, a in extras]
        return Request(cpus, tuple(parts))

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
        elif chance > 1 - self._flaky_share:
            outcome = FLAKY
        if outcome in (CRASH, REDIRECT):
            symbol = "sim/executor"
        self._salt += 1
        duration_us = int(self._usual_us * rng.lognormvariate(0, 1)) if symbol != "sim/inline" else rng.randint(1, 30)
        if rng.random() < 0.03 and symbol != "sim/inline":
            duration_us *= 30
        spec = Spec(self._salt, outcome, duration_us, rng.choice(_SIZES), length=rng.randint(0, MOST_ELEMENTS))
        if outcome == REDIRECT:
            spec.plan = self._subplan(n_inputs, nesting + 1)
        spec.retries = rng.choice((0, 0, 0, 1, 3)) if self._flaky_share else 0
        if outcome == FLAKY:
            most = 5 if self._fail_share else spec.retries
            spec.fails_first = rng.randint(min(1, most), most)
        if rng.random() < self._limit_share:
            is_short = self._fail_share and rng.random() < 0.5
            spec.limit_ms = max(1, duration_us // 2000) if is_short else 2000 + duration_us // 250
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
