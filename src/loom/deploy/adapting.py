"""How many nodes what waits is worth. No I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Final

from loom.deploy.nodes import Offer
from loom.messages import Load, Waiting, WorkerLoad

_WORTH_S: Final = 5.0  # a node is started for so much work a core, or for tasks that nobody knows the time of


def nodes_for(load: Load, offer: Offer, own: Set[str] = frozenset(), worth_s: float = _WORTH_S) -> int:
    """How many more nodes would find something to do, those that are just being started included. `own`: the names of
    the workers of such nodes; nobody knows what others have besides cores.
    """
    workers = sum(_workers_for(line, load, offer, own, worth_s) for line in load.waiting)
    return math.ceil(workers / offer.n_workers)


def cannot_run(load: Load, offer: Offer) -> list[Waiting]:
    """What waits and asks for more than a worker of these nodes has."""
    return [line for line in load.waiting if _at_once(line, offer) == 0]


def _workers_for(line: Waiting, load: Load, offer: Offer, own: Set[str], worth_s: float) -> float:
    at_once = _at_once(line, offer)
    if at_once == 0:
        return 0.0
    if not line.request.cpus and not line.request.extras:
        return 0.0 if load.workers else 1.0  # light tasks run beside others
    n_known = line.count - line.n_unknown
    by_work = line.work_ms / 1000 / worth_s / at_once
    if not line.n_unknown and by_work < 1 and any(_may_run(line, worker, own) for worker in load.workers):
        return 0.0  # it is done before another one has come
    return line.n_unknown / at_once + min(n_known / at_once, max(by_work, 1 / at_once if n_known else 0.0))


def _may_run(line: Waiting, worker: WorkerLoad, own: Set[str]) -> bool:
    if line.request.extras and worker.name not in own:
        return False
    has_time = not worker.time_left_ms or worker.time_left_ms >= line.needs_ms
    return worker.cpus >= line.request.cpus and has_time and not worker.leaving


def _at_once(line: Waiting, offer: Offer) -> float:
    """How many of these tasks a worker can run at a time; 0: none."""
    request = line.request
    if request.cpus > offer.cpus or 0 < offer.time_limit_ms < line.needs_ms:
        return 0
    at_once = offer.cpus // request.cpus if request.cpus else math.inf
    for name, amount in request.extras:
        if amount > offer.extras.get(name, 0):
            return 0
        at_once = min(at_once, offer.extras[name] // amount)
    return at_once
