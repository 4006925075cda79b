"""Keeps as many nodes as are wanted: a number, or what the load is worth. It has no clock: `turn` is told the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from loom.deploy.adapting import cannot_run, nodes_for
from loom.deploy.nodes import Node, Provider
from loom.deploy.saying import Says, counted
from loom.errors import ClientClosed, DeployError, LoomError, LoomException
from loom.messages import Load, Waiting, WorkerLoad
from loom.resources import describe

IDLE_S: Final = 30.0  # a node whose workers had nothing to do for so long is let go
_SOON_S: Final = 5.0  # a node that ends earlier than this after it began to run has a reason that others will meet, too
PAUSE_S: Final = 1.0  # before nodes are started again where that has failed, doubled each time
_MOST_PAUSE_S: Final = 60.0
_LEAVE_S: Final = 90.0  # how long a node that was asked to go may take


class Wanted(NamedTuple):
    """So many nodes; between the two, as many as what waits is worth."""

    minimum: int
    maximum: int
    idle_s: float = IDLE_S

    @property
    def is_fixed(self) -> bool:
        return self.minimum == self.maximum


class Keeper:
    """`retire` asks the server that workers of these names go. `wanted` may be set at any time, from any thread."""

    def __init__(
        self,
        provider: Provider,
        says: Says,
        retire: Callable[[list[str]], object],
        wanted: Wanted,
        first_pause_s: float = PAUSE_S,
    ) -> None:
        self.wanted = wanted
        self.n_wanted = wanted.minimum
        """How many nodes there are to be, as of the last turn."""
        self.nodes: list[Node] = []
        """Those there were in the last turn, without ended ones."""
        self._provider = provider
        self._says = says
        self._retire = retire
        self._first_pause_s = first_pause_s
        self._pause_s = 0.0
        self._not_before_s = 0.0  # nothing is launched
        self._failed_s = -math.inf  # when that has failed last
        self._n_quick = 0  # nodes that have ended in good order as soon as they ran
        self._running_since: dict[str, float] = {}
        self._leaving_since: dict[str, float] = {}  # nodes that were asked to go
        self._idle_since: dict[str, tuple[int, float]] = {}  # workers: what they had been given, and since when
        self._arrived: set[str] = set()  # nodes whose workers were at the server: one that is not may come back
        self._surplus_since: float | None = None  # more nodes are on their way than what waits is worth
        self._unmet: list[Waiting] = []

    @property
    def needs_load(self) -> bool:
        """Whether a turn has use for what the server says: not where all is as it is to be."""
        return not self.wanted.is_fixed or len(self.nodes) > self.wanted.minimum

    def turn(self, load: Load | None, now: float) -> None:
        """Start and end nodes. `load` is what the server says, None where it could not be asked."""
        try:
            found = self._provider.nodes()
        except DeployError as error:
            self._says.complain(str(error))
            return
        for node in found:
            if node.state == "ended":
                self._on_ended(node, now)
            elif node.state == "running":
                since = self._running_since.setdefault(node.id, now)
                if now - since > _SOON_S and since > self._failed_s:
                    self._pause_s = 0.0
                    self._n_quick = 0
        self.nodes = [node for node in found if node.state != "ended"]
        workers = self._look(load, now)
        self._end_overdue(workers, now)
        staying = [node for node in self.nodes if node.id not in self._leaving_since]
        self._ask_again(workers)
        wanted = self.wanted
        if wanted.is_fixed:
            self.n_wanted = wanted.minimum
            candidates = staying if load is not None else [node for node in staying if node.state == "waiting"]
        else:
            self.n_wanted, candidates = self._adapt(staying, wanted, load, workers, now)
        if len(staying) < self.n_wanted:
            self._launch(self.n_wanted - len(staying), now)
        elif len(staying) > self.n_wanted:
            self._let_go(candidates, len(staying) - self.n_wanted, workers, now)

    # -- How many -----------------------------------------------------------------------------------------------------

    def _look(self, load: Load | None, now: float) -> dict[str, WorkerLoad]:
        """Take note of who is idle."""
        if load is None:
            return {}
        workers = {worker.name: worker for worker in load.workers}
        before, self._idle_since = self._idle_since, {}
        for name, worker in workers.items():
            given, since = before.get(name, (worker.n_given, now))
            if worker.n_tasks or given != worker.n_given:
                since = now
            self._idle_since[name] = worker.n_given, since
        self._arrived.update(node.id for node in self.nodes if any(name in workers for name in node.workers))
        return workers

    def _adapt(
        self, staying: list[Node], wanted: Wanted, load: Load | None, workers: dict[str, WorkerLoad], now: float
    ) -> tuple[int, list[Node]]:
        """How many there are to be, and which of them may go."""
        n_now = len(staying)
        if load is None:
            return max(wanted.minimum, min(n_now, wanted.maximum)), []
        self._tell_unmet(load)
        arrived = [node for node in staying if any(name in workers for name in node.workers)]
        n_coming = n_now - len(arrived)
        own = {name for node in self.nodes for name in node.workers}
        needed = nodes_for(load, self._provider.offer, own)
        idle = [] if needed else [node for node in arrived if self._idle_for(node, now) >= wanted.idle_s]
        going = {name for node in idle for name in node.workers}
        if load.n_objects and all(worker.leaving or worker.name in going for worker in load.workers):
            idle = idle[1:]  # what somebody may still ask for must be somewhere
        if n_coming > needed:
            if self._surplus_since is None:
                self._surplus_since = now
        else:
            self._surplus_since = None
        if self._surplus_since is not None and now - self._surplus_since < wanted.idle_s:
            needed = n_coming  # there may be more to do in a moment
        n_wanted = len(arrived) - len(idle) + needed
        coming = [node for node in staying if node not in arrived]
        may_go = staying if n_now > wanted.maximum else coming + idle
        return max(wanted.minimum, min(n_wanted, wanted.maximum)), may_go

    def _idle_for(self, node: Node, now: float) -> float:
        """How long all its workers have had nothing to do."""
        since = [self._idle_since[name][1] for name in node.workers if name in self._idle_since]
        return now - max(since) if since else 0.0

    def _tell_unmet(self, load: Load) -> None:
        unmet = cannot_run(load, self._provider.offer)
        known = {line.request for line in self._unmet}
        for line in unmet:
            if line.request not in known:
                asks = describe(line.request) + (f" for {line.needs_ms / 1000:g} s" if line.needs_ms >= 1000 else "")
                tasks = "1 task asks" if line.count == 1 else f"{line.count:,} tasks ask"
                self._says.complain(f"{tasks} for {asks}: more than a worker here has")
        self._unmet = unmet

    # -- Starting and ending ------------------------------------------------------------------------------------------

    def _launch(self, count: int, now: float) -> None:
        if now < self._not_before_s:
            return
        self._says.say(f"starting {counted(count, self._provider.what)}")
        try:
            self._provider.launch(count)
        except (DeployError, OSError) as error:
            self._fail(str(error), now)

    def _fail(self, story: str, now: float) -> None:
        if now >= self._not_before_s:  # those that were started together are one failure
            self._pause_s = min(max(self._first_pause_s, 2 * self._pause_s), _MOST_PAUSE_S)
            self._not_before_s = now + self._pause_s
        self._failed_s = now
        again = f"; trying again in {self._pause_s:g} s" if self._pause_s else ""
        self._says.complain(story + again)

    def _on_ended(self, node: Node, now: float) -> None:
        began = self._running_since.pop(node.id, now)
        self._arrived.discard(node.id)
        was_asked = self._leaving_since.pop(node.id, None) is not None
        if was_asked or not node.story:
            self._says.say(f"{self._provider.what} {node.id} has ended")
            if not was_asked and now - began < _SOON_S:
                self._n_quick += 1
                if self._n_quick > 1:
                    self._fail(f"{self._provider.what} {node.id} has ended as soon as it ran, without an error", now)
            return
        story = f"{self._provider.what} {node.id} {node.story}"
        if now - began < _SOON_S:
            self._fail(story, now)
        else:
            self._says.complain(story)

    def _let_go(self, candidates: Sequence[Node], count: int, workers: dict[str, WorkerLoad], now: float) -> None:
        """Those that do not run yet first, then those with the least to do."""

        def tasks_of(node: Node) -> tuple[int, int]:
            known = [workers[name] for name in node.workers if name in workers]
            return (1, sum(worker.n_tasks for worker in known)) if known else (2 if is_away(node) else 0, 0)

        def is_away(node: Node) -> bool:
            return node.id in self._arrived and node.state == "running"

        going = sorted(candidates, key=tasks_of)[:count]
        unknown = [node for node in going if not (is_away(node) or any(name in workers for name in node.workers))]
        for node in going:
            self._leaving_since[node.id] = now
        if unknown:
            self._provider.end(unknown)
        names = [name for node in going if node not in unknown for name in node.workers]
        if going:
            self._says.say(f"letting {counted(len(going), self._provider.what)} go")
        if names:
            self._ask_to_go(names)

    def _ask_again(self, workers: dict[str, WorkerLoad]) -> None:
        """Those that were to go and have not heard of it: the link to the server was lost, or theirs."""
        leaving = [name for node in self.nodes if node.id in self._leaving_since for name in node.workers]
        names = [name for name in leaving if name in workers and not workers[name].leaving]
        if names:
            self._ask_to_go(names)

    def _ask_to_go(self, names: list[str]) -> None:
        try:
            self._retire(names)
        except ClientClosed:
            pass  # they all go
        except LoomException as error:
            self._says.complain(f"the server could not be told that workers are to go: {error}")

    def _end_overdue(self, workers: dict[str, WorkerLoad], now: float) -> None:
        """But for those whose workers say that they are leaving: they know how long they may take."""
        leaving = {name for name, worker in workers.items() if worker.leaving}
        late = [node for node in self.nodes if now - self._leaving_since.get(node.id, now) > _LEAVE_S]
        overdue = [node for node in late if leaving.isdisjoint(node.workers)]
        if overdue:
            self._provider.end(overdue)


def check_wanted(minimum: int, maximum: int, idle_s: float = IDLE_S) -> Wanted:
    """LoomError where these are no numbers of nodes."""
    for name, number in (("minimum", minimum), ("maximum", maximum)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            said = repr(number) if minimum is maximum else f"{name}={number!r}"
            raise LoomError(f"{said}: a number of nodes is a whole number, 0 or more")
    if maximum < minimum:
        raise LoomError(f"minimum={minimum} is more than maximum={maximum}")
    if not idle_s >= 0:
        raise LoomError(f"idle_s={idle_s!r}: write seconds")
    return Wanted(minimum, maximum, idle_s)
