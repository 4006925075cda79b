"""What goes wrong in a run, and when; after a while it is put right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loom.limits import SESSION_GRACE_S

if TYPE_CHECKING:
    from loom.sim.world import World

_LONG_S: Final = 2 * SESSION_GRACE_S


class Faults:
    """Strikes at random times for `duration_s`; then a worker is there that can run anything."""

    def __init__(self, world: World, duration_s: float, mean_pause_s: float) -> None:
        self._world = world
        self._until = world.clock.now + duration_s
        self._mean_pause_s = mean_pause_s
        self._n_kills = 0
        self._strikes = (
            (4, self._kill_worker),
            (2, self._add_worker),
            (2, self._break_worker_link),
            (4, self._break_client_link),
            (2, self._stall_link),
            (5, self._kill_executor),
            (1, self._shut_client_out),
            (1, self._vanish_client),
        )
        self._wait()

    def _wait(self) -> None:
        pause_s = self._world.rng.expovariate(1 / self._mean_pause_s)
        self._world.clock.after(pause_s, self._strike)

    def _strike(self) -> None:
        world = self._world
        if world.clock.now >= self._until:
            world.add_worker(world.max_cpus)
            return
        weights = [weight for weight, _ in self._strikes]
        _, strike = world.rng.choices(self._strikes, weights)[0]
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

    def _add_worker(self) -> None:
        world = self._world
        if sum(w.alive for w in world.workers) < 5:
            world.add_worker(world.rng.randint(1, world.max_cpus))

    def _break_worker_link(self) -> None:
        ends = [w.end for w in self._world.workers if w.alive and w.end is not None]
        if ends:
            self._world.rng.choice(ends).link.break_off()

    def _break_client_link(self) -> None:
        clients = [c for c in self._world.clients if not c.over and c.end is not None]
        if clients:
            self._world.rng.choice(clients).break_link()

    def _shut_client_out(self) -> None:
        """Longer than its session lives without a link, mostly."""
        clients = [c for c in self._world.clients if not c.over and c.end is not None]
        if clients:
            client = self._world.rng.choice(clients)
            client.may_lose_session = True
            self._world.refuse(client, self._world.clock.now + self._world.rng.random() ** 2 * _LONG_S)
            client.break_link()

    def _vanish_client(self) -> None:
        clients = [c for c in self._world.clients if not c.over]
        if clients and self._world.rng.random() < 0.2:
            self._world.rng.choice(clients).vanish()

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
