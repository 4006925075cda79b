"""One simulated run: who is there, how fast links are, what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from loom.limits import LINEAGE_BYTES
from loom.messages import PeerAddress
from loom.resources import GPU_PARTS
from loom.sim.client import SimClient
from loom.sim.clock import Clock
from loom.sim.faults import Faults
from loom.sim.ledger import Ledger
from loom.sim.network import End, Link, Owner, Speeds
from loom.sim.server import SimServer
from loom.sim.tasks import SimObject
from loom.sim.worker import SimWorker, objects_of
from loom.sim.workloads import Maker

_LEAVE_S: Final = 100.0  # after the last session: links end, the largest objects arrive on the slowest links


@dataclass(frozen=True)
class Chances:
    """What kind of run a seed makes."""

    largest_plan: int
    turn_s: float
    split_frames: bool
    slow_loop: bool
    fetch_fails: float
    not_inline: float

    def plan_size(self, rng: Random) -> int:
        return rng.randint(1, rng.choice((5, 20, self.largest_plan)))


class World:
    """`faulty`: things go wrong for some seconds of virtual time."""

    def __init__(self, seed: int, say: Callable[[str], None] | None = None) -> None:
        self.rng = rng = Random(seed)
        self.clock = Clock()
        self._say = say
        faulty = rng.random() < 0.8
        self.max_cpus = rng.choice((1, 2, 4))
        self.chances = Chances(
            largest_plan=300 if rng.random() < 0.03 else 40,
            turn_s=rng.choice((0.0, 0.0001, 0.01)),
            split_frames=rng.random() < 0.4,
            slow_loop=rng.random() < 0.5,
            fetch_fails=rng.choice((0.0, 0.0, 0.2)) if faulty else 0.0,
            not_inline=rng.choice((0.0, 0.0, 0.1)),
        )
        self.extras = rng.choice(((), (("gpus", 2 * GPU_PARTS), ("mem", 100))))
        self.saved: set[bytes] = set()  # checkpoints that are in place
        self.may_be_ended: set[str] = set()  # names of sessions that somebody has ended, sooner or later
        self.maker = Maker(rng, self.max_cpus, self.extras, rng.choice((0.0, 0.0, 0.05)), rng.choice((0.0, 0.1, 0.3)))
        self._speeds = Speeds(
            latency_s=rng.choice((0.0001, 0.001, 0.05)),
            jitter_s=rng.choice((0.0, 0.0001, 0.1)),
            bytes_per_s=rng.choice((1e5, 1e7, 1e9)),
            high_water_bytes=rng.choice((500, 5_000, 1_000_000)),
            notice_s=rng.choice((0.01, 3.0)),
        )
        self.crash_limit = rng.choice((0, 0, 0, 2, 3)) if faulty else 3
        self.lineage_bytes = rng.choice((LINEAGE_BYTES, LINEAGE_BYTES, 5_000))
        self._parted: dict[frozenset[int], float] = {}
        self._runs: dict[int, int] = {}
        self.server = SimServer(self, rng.choice((None, 0.0, 0.001, 0.1, 1.0)))
        self.ledger = Ledger(self.server.core)
        self.workers: list[SimWorker] = []
        self.clients: list[SimClient] = []
        self._refused: dict[SimClient, float] = {}
        self._n_to_come = 0  # clients
        for _ in range(rng.randint(1, 4)):
            self.add_worker(rng.randint(1, self.max_cpus))
        self.add_worker(self.max_cpus)
        for number in range(1, 1 + rng.choice((1, 1, 2, 3))):
            self.clients.append(SimClient(self, number, f"session {number}" if rng.random() < 0.3 else ""))
        self._faults = Faults(self, rng.random() * 4, rng.choice((0.005, 0.02, 0.1, 0.5))) if faulty else None

    # -- What the parts ask -------------------------------------------------------------------------------------------

    def add_worker(self, cpus: int, lifetime_s: float | None = None) -> None:
        self.workers.append(SimWorker(self, len(self.workers) + 1, cpus, lifetime_s))

    def continue_session(self, before: SimClient) -> None:
        """Some time later another client takes up the named session that one has left, or still uses."""
        if before.succeeded:
            return
        before.succeeded = True
        last = before if before.session is not None else before.before

        def begin() -> None:
            self._n_to_come -= 1
            client = SimClient(self, len(self.clients) + 10, before.name, last)
            client.may_lose_session = before.session is None  # what that one has said last may come yet
            self.clients.append(client)

        self._n_to_come += 1
        self.clock.after(self.rng.random() * self.rng.choice((0.1, 10.0)), begin)

    def connect(self, role: str, owner: Owner) -> End:
        link = Link(self.clock, self.rng, self._speeds, repr(owner), role, owner, self.server)
        self.server.on_link(link.far, role)
        return link.near

    def refuse(self, client: SimClient, until: float) -> None:
        self._refused[client] = until

    def refuses(self, client: SimClient) -> bool:
        return not self.server.alive or self.clock.now < self._refused.get(client, 0.0)

    def turn_delay_s(self) -> float:
        return self.rng.random() * self.chances.turn_s

    def transfer(
        self, peer: PeerAddress, object_id: int, came: Callable[[SimObject | None, bool], None], asker: int = 0
    ) -> None:
        """Ask a worker for an object; every question is answered: it, or nothing and whether the worker was reached.

        `asker`: the process of the worker that asks; clients are 0.
        """
        delay_s = self._speeds.latency_s + self.rng.random() * self._speeds.jitter_s

        def serve() -> None:
            holder = self.workers[peer.port - 1]
            found = objects_of(holder, peer, object_id)
            unreachable = self.parted(asker, holder.number) or (found is None and not holder.alive)
            if unreachable or self.rng.random() < self.chances.fetch_fails:
                found = None
            size_bytes = found.size_bytes if found is not None else 0
            self.clock.after(delay_s + size_bytes / self._speeds.bytes_per_s, lambda: came(found, unreachable))

        self.clock.after(delay_s, serve)

    def part(self, one: int, other: int, until: float) -> None:
        """Two workers cannot reach each other for a while."""
        self._parted[frozenset((one, other))] = until

    def parted(self, one: int, other: int) -> bool:
        return self.clock.now < self._parted.get(frozenset((one, other)), 0.0)

    def count_run(self, task: int) -> int:
        """How often the task has been run now."""
        self._runs[task] = self._runs.get(task, 0) + 1
        return self._runs[task]

    def is_settled(self) -> bool:
        """Nothing goes wrong any more."""
        quiet = self.server.alive and not self.server.core.attaching.settling
        return quiet and (self._faults is None or self._faults.over)

    def complete_sessions(self) -> set[int]:
        """Sessions of whose plans nothing is still to come."""
        complete = set()
        for client in self.clients:
            session = self.server.core.graph.sessions.get(client.session or 0)
            if (
                client.is_last
                and session is not None
                and session.next_number in client.reckoning.plan_ends
                and not session.plan_open
            ):
                complete.add(session.id)
        return complete

    def trace(self, who: object, what: object) -> None:
        if self._say is not None:
            for item in what if isinstance(what, list) else [what]:
                self._say(f"{self.clock.now - 1000:.6f} {who}: {item}")

    # -- The run ------------------------------------------------------------------------------------------------------

    def run(self, within_s: float, most_events: int) -> None:
        """Until every client is done and everything it left is gone; AssertionError where that does not come."""
        clock = self.clock
        until = clock.now + within_s
        last = clock.n_fired + most_events
        while self._n_to_come or not all(client.over for client in self.clients) or self.server.core.graph.sessions:
            assert clock.fire_next(), f"nothing goes on, and these wait: {self._waiting()}"
            assert clock.now < until, f"after {within_s} s these still wait: {self._waiting()}"
            assert clock.n_fired < last, f"after {most_events} events these still wait: {self._waiting()}"
        until = clock.now + _LEAVE_S
        while clock.now < until and clock.fire_next():
            assert clock.n_fired < last, f"after {most_events} events something is still going on"
        self.ledger.check_nothing_left([worker for worker in self.workers if worker.alive])

    def _waiting(self) -> str:
        lines = []
        for client in self.clients:
            if not client.over:
                unfinished = [n for n, future in client.futures.items() if not future.over]
                lines.append(f"{client} (session {client.session}) for {unfinished or 'fetches'}")
        for session in self.server.core.graph.sessions.values():
            lines += [repr(node) for node in session.nodes() if node.state < 3][:20]
        return "\n  ".join(["", *lines])
