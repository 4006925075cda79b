"""A journal that takes its time: what was given to it is on disk some time later, or never, when its server dies."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from msgspec.msgpack import Decoder, Encoder

from loom.core.compact import compacted
from loom.core.past import Past
from loom.facts import AnyFact, TasksFinished
from loom.sim.clock import Clock

_encode: Final = Encoder().encode
_decode: Final = Decoder(list[AnyFact]).decode


class SimJournal:
    """`written` is what is on disk. One commit is under way at a time, and takes up to `delay_s`."""

    def __init__(self, clock: Clock, rng: Random, delay_s: float, on_durable: Callable[[], None]) -> None:
        self.written: list[bytes] = []
        self.n_durable = 0  # records of the present server
        self.n_given = 0
        self._clock = clock
        self._rng = rng
        self._delay_s = delay_s
        self._on_durable = on_durable
        self._waiting: list[bytes] = []
        self._under_way = 0
        self._server = 0  # counts restarts

    def append(self, facts: list[AnyFact]) -> None:
        self._waiting.append(_encode(facts))
        self.n_given += 1
        self._commit()

    def _commit(self) -> None:
        if self._waiting and not self._under_way:
            self._under_way = len(self._waiting)
            server = self._server
            self._clock.after(self._rng.random() * self._delay_s, lambda: self._committed(server))

    def _committed(self, server: int) -> None:
        if server == self._server:
            self._keep(self._under_way)
            self._under_way = 0
            self._commit()
            self._on_durable()

    def _keep(self, count: int) -> None:
        self.written += self._waiting[:count]
        del self._waiting[:count]
        self.n_durable += count

    def crash(self) -> None:
        """The server is killed: of the commit under way all is on disk, or nothing."""
        if self._under_way and self._rng.random() < 0.5:
            self._keep(self._under_way)
        self._waiting.clear()
        self._under_way = self.n_durable = self.n_given = 0
        self._server += 1

    def read(self) -> Past:
        """What a server that starts now finds; sometimes it is written anew first."""
        if self._rng.random() < 0.3:
            facts = list(compacted(self._fold()))
            cuts = sorted(self._rng.randint(0, len(facts)) for _ in range(2))
            self.written = [_encode(facts[a:b]) for a, b in zip([0, *cuts], [*cuts, len(facts)], strict=True)]
        return self._fold()

    def _fold(self) -> Past:
        past = Past()
        for record in self.written:
            for fact in _decode(record):
                past.apply(fact)
        assert not past.problems, past.problems
        return past

    def accepted(self) -> set[tuple[int, int]]:
        """Ids and attempts of all results that are known to be accepted."""
        facts = (fact for record in self.written for fact in _decode(record))
        return {
            run
            for fact in facts
            if isinstance(fact, TasksFinished)
            for run in zip(memoryview(fact.tasks).cast("Q"), memoryview(fact.attempts).cast("Q"), strict=True)
        }
