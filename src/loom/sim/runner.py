"""Runs a seed and says in a line what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from loom.sim.world import World

_WITHIN_S: Final = 3000.0  # virtual; large objects on the slowest links take minutes
_MOST_EVENTS: Final = 400_000


def run_seed(seed: int, say: Callable[[str], None] | None = None) -> str:
    """AssertionError where something is not as it must be. `say` is given every event and effect."""
    world = World(seed, say)
    began = world.clock.now
    world.run(_WITHIN_S, _MOST_EVENTS)
    return (
        f"{len(world.clients)} clients, {len(world.workers)} workers, {world.ledger.n_accepted} tasks accepted, "
        f"{world.ledger.n_restarts} restarts, "
        f"{world.clock.n_fired} events in {world.clock.now - began:.1f} virtual s"
    )
