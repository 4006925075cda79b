"""What goes wrong in a run, and when; after a while it is put right."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from loom.limits import SESSION_GRACE_S

if TYPE_CHECKING:
    from loom.sim.client import SimClient
    from loom.sim.worker import SimWorker
    from loom.sim.world import World

_LONG_S: Final = 2 * SESSION_GRACE_S


class Faults:
    """Strikes at random times for `duration_s`; then a worker is there that can run anything.

    Each run has some kinds of faults only: with all of them at once few situations last long enough to matter.
    """

    def __init__(self, world: World, duration_s: float, mean_pause_s: float) -> None:
        self._world = world
        self._until = world.clock.now + duration_s
        self._mean_pause_s = mean_pause_s
        self._n_kills = 0
        self._n_drains = 0
        strikes = [
            self._kill_worker,
            self._add_worker,
            self._break_worker_link,
            self._break_client_link,
            self._stall_link,
            self._kill_executor,
            self._spoil_object,
            self._freeze_worker,
            self._part_workers,
            self._drain_worker,
            self._press_worker,
        ]
        if world.server.journal is not None:
            strikes += [self._kill_server] * world.rng.choice((1, 5, 10))
        self._strikes = [strike for strike in strikes if world.rng.random() < 0.6] or [self._kill_worker]
        if world.rng.random() < 0.2:
            self._once(self._shut_client_out)
        if world.rng.random() < 0.2:
            self._once(self._vanish_client)
        if world.rng.random() < 0.4:
            self._once(self._take_over)
        if world.rng.random() < 0.1:
            self._once(self._end_session)
        self._wait()

    @property
    def over(self) -> bool:
        return self._world.clock.now >= self._until

    def _once(self, strike: Callable[[], None]) -> None:
        self._world.clock.after(self._world.rng.random() * 2, strike)

    def _wait(self) -> None:
        pause_s = self._world.rng.expovariate(1 / self._mean_pause_s)
        self._world.clock.after(pause_s, self._strike)

    def _strike(self) -> None:
        world = self._world
        if self.over:
            world.add_worker(world.max_cpus)
            return
        strike = world.rng.choice(self._strikes)
        world.trace(self, strike.__name__)
        strike()
        self._wait()

    def __repr__(self) -> str:
        return "faults"

    def _kill_worker(self) -> None:
        world = self._world
        alive = [w for w in world.workers if w.alive]
        if alive:
            world.rng.choice(alive).die()
            world.clock.after(world.rng.random() * 2, self._add_worker)

    def _kill_server(self) -> None:
        """It starts again after a while, which may be long."""
        world = self._world
        is_used = any(worker.loads for worker in world.server.core.workers.values())  # else there is little to see
        if world.server.alive and (is_used or world.rng.random() < 0.05):
            for client in world.clients:
                client.may_lose_session |= client.session is None
            world.server.kill()
            world.clock.after(world.rng.random() * world.rng.choice((0.1, 0.1, 1.0, 15.0)), world.server.restart)

    def _add_worker(self) -> None:
        world = self._world
        if sum(w.alive for w in world.workers) < 5:
            lifetime_s = world.rng.choice((None, None, None, 1.0, 5.0))
            world.add_worker(world.rng.randint(1, world.max_cpus), lifetime_s)

    def _freeze_worker(self) -> None:
        alive = self._alive()
        if alive:
            rng = self._world.rng
            rng.choice(alive).freeze(rng.random() * 2, rng.choice((0.1, 1.0)))

    def _part_workers(self) -> None:
        alive = self._alive()
        if len(alive) > 1:
            one, other = self._world.rng.sample(alive, 2)
            self._world.part(one.number, other.number, self._world.clock.now + self._world.rng.random() * 3)

    def _drain_worker(self) -> None:
        world = self._world
        alive = self._alive()
        if alive:
            worker, timeout_s = world.rng.choice(alive), world.rng.random()
            self._n_drains += 1
            if self._n_drains % 2:
                worker.drain(timeout_s)
            else:
                worker.drain_timeout_s = timeout_s
                world.server.retire(worker.name)
            world.clock.after(world.rng.random() * 2, self._add_worker)

    def _press_worker(self) -> None:
        alive = self._alive()
        if alive:
            self._world.rng.choice(alive).press()

    def _alive(self) -> list[SimWorker]:
        return [worker for worker in self._world.workers if worker.alive and not worker.frozen]

    def _spoil_object(self) -> None:
        alive = [w for w in self._world.workers if w.alive]
        if alive:
            self._world.rng.choice(alive).spoil_something()

    def _break_worker_link(self) -> None:
        ends = [w.end for w in self._world.workers if w.alive and w.end is not None]
        if ends:
            self._world.rng.choice(ends).link.break_off()

    def _break_client_link(self) -> None:
        clients = [c for c in self._world.clients if not c.over and c.session is not None]
        if clients:
            self._world.rng.choice(clients).break_link()

    def _shut_client_out(self) -> None:
        """Longer than its session lives without a link, mostly."""
        clients = [c for c in self._world.clients if not c.over and c.session is not None]
        if clients:
            client = self._world.rng.choice(clients)
            client.may_lose_session = True
            self._world.refuse(client, self._world.clock.now + self._world.rng.random() ** 2 * _LONG_S)
            client.break_link()

    def _vanish_client(self) -> None:
        clients = [c for c in self._world.clients if not c.over]
        if clients:
            self._world.rng.choice(clients).vanish()

    def _named(self) -> list[SimClient]:
        """Clients that use a session with a name."""
        return [c for c in self._world.clients if c.name and not c.over and c.session is not None and c.is_last]

    def _take_over(self) -> None:
        """Another client wants a named session that is in use."""
        named = self._named()
        if named:
            client = self._world.rng.choice(named)
            client.may_lose_session = True
            self._world.continue_session(client)

    def _end_session(self) -> None:
        """Some client has the session of another one ended."""
        named = self._named()
        if named:
            client = self._world.rng.choice(named)
            others = [c for c in self._world.clients if c.name != client.name and not c.over and c.session is not None]
            if others:
                self._world.rng.choice(others).end_session_of(client)

    def _stall_link(self) -> None:
        world = self._world
        ends = [w.end for w in world.workers if w.alive and w.end is not None]
        ends += [c.end for c in world.clients if not c.over and c.end is not None]
        if ends:
            world.rng.choice(ends).link.stall(world.rng.random() * 1.5, world.rng.random() < 0.5)

    def _kill_executor(self) -> None:
        world = self._world
        busy = [e for w in world.workers if w.alive for e in w.executors if e.alive and e.running is not None]
        if busy:
            executor = world.rng.choice(busy)
            self._n_kills += 1
            story = f"killed from outside ({self._n_kills})"
            assert executor.running is not None
            world.ledger.killed[story] = executor.running.id
            executor.kill(story)
