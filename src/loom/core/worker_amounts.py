"""What a worker has besides cores, and which tasks hold how much of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loom.resources import GPU_PARTS, GPUS

Extras = Iterable[tuple[str, int]]


class Amounts:
    """`free`: of everything but gpus. Gpus are counted one by one: part of a gpu is a part of one gpu."""

    def __init__(self, extras: Mapping[str, int]) -> None:
        self.free = {name: amount for name, amount in extras.items() if name != GPUS}
        self.free_gpus = [GPU_PARTS] * (extras.get(GPUS, 0) // GPU_PARTS)

    def has(self, extras: Extras) -> bool:
        """Whether all of this is free now."""
        return all(
            self._find_gpus(amount) is not None if name == GPUS else amount <= self.free.get(name, 0)
            for name, amount in extras
        )

    def take(self, extras: Extras, rather: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Take what is free; returns the gpus, `rather` these."""
        gpus: tuple[int, ...] = ()
        for name, amount in extras:
            if name == GPUS:
                found = self._find_gpus(amount, rather)
                assert found is not None, f"there are no {amount} parts of gpus: {self.free_gpus}"
                gpus = found
                for gpu in gpus:
                    self.free_gpus[gpu] -= min(amount, GPU_PARTS)
            else:
                self.free[name] -= amount
        return gpus

    def give_back(self, extras: Extras, gpus: tuple[int, ...]) -> None:
        for name, amount in extras:
            if name != GPUS:
                self.free[name] += amount
            for gpu in gpus if name == GPUS else ():
                self.free_gpus[gpu] += min(amount, GPU_PARTS)

    def _find_gpus(self, amount: int, rather: tuple[int, ...] = ()) -> tuple[int, ...] | None:
        """Whole gpus, or for a part of one the gpu that has least to spare."""
        least = min(amount, GPU_PARTS)
        if len(rather) * least == amount and all(self.free_gpus[gpu] >= least for gpu in rather):
            return rather
        if amount < GPU_PARTS:
            fitting = [(free, gpu) for gpu, free in enumerate(self.free_gpus) if free >= amount]
            return (min(fitting)[1],) if fitting else None
        count = amount // GPU_PARTS
        whole = [gpu for gpu, free in enumerate(self.free_gpus) if free == GPU_PARTS]
        return tuple(whole[:count]) if len(whole) >= count else None
