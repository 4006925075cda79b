"""Which worker of this host has which core or gpu: a name that is bound as an abstract unix socket is taken.

Such a name is held by one process of a network namespace, whoever its user is, and goes with the process however that
ends. Nothing listens there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final

REGISTRY_VARIABLE: Final = "LOOM_CORE_REGISTRY"  # workers with different values do not see each other's claims
_DEFAULT_REGISTRY: Final = "loom"


class Claims:
    """What this process has taken."""

    def __init__(self) -> None:
        self._registry = os.environ.get(REGISTRY_VARIABLE) or _DEFAULT_REGISTRY
        self._held: dict[str, socket.socket] = {}

    def take(self, name: str) -> bool:
        """Take what nobody has, here or in another process."""
        if name in self._held:
            return False
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0{self._registry}-{name}")
        except OSError:  # taken; or such names cannot be bound here, and then nothing can be said to be ours
            claim.close()
            return False
        self._held[name] = claim
        return True

    def give_back(self, name: str) -> None:
        self._held.pop(name).close()

    def close(self) -> None:
        for name in list(self._held):
            self.give_back(name)

    def take_cores(self, count: int, allowed: Sequence[int]) -> tuple[int, ...]:
        """As many of the allowed cores as are asked for, or none where there are not so many free ones.

        It stops as soon as they cannot suffice, so that of two workers that start at once, and between them want more
        than there is, the first gets what it wants.
        """
        taken: list[int] = []
        for position, core in enumerate(allowed):
            if len(taken) + len(allowed) - position < count:
                break
            if self.take(_core_name(core)):
                taken.append(core)
            if len(taken) == count:
                return tuple(taken)
        for core in taken:
            self.give_back(_core_name(core))
        return ()


def _core_name(core: int) -> str:
    return f"core-{core}"
