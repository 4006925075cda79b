"""What a workload is given: sizes, a cluster, and where its rows go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil

from benchmarks import cluster
from benchmarks.cluster import Cluster
from benchmarks.measuring import Measured, Row, Side, Target, interleaved
from benchmarks.meter import below
from benchmarks.peer_runs import Asked


@dataclass(frozen=True)
class Options:
    repeat: int = 3
    quick: bool = False
    embedded: bool = False
    scale: float = 1.0
    peers: tuple[str, ...] = ()


class Bench:
    """`report` is called with each row as soon as it is known."""

    def __init__(self, workload: str, options: Options, report: Callable[[Row], None]) -> None:
        self.options = options
        self._workload = workload
        self._report = report
        self._cluster_pids: list[int] = []

    def size(self, n: int) -> int:
        """As large as asked for."""
        return max(1, round(n * self.options.scale))

    def sizes(self, *always: int, unless_quick: Sequence[int] = ()) -> list[int]:
        return [self.size(n) for n in (*always, *([] if self.options.quick else unless_quick))]

    @contextmanager
    def loom(self) -> Iterator[Cluster]:
        """The cluster that is measured until the block ends."""
        with cluster.running(self.options.embedded) as running:
            self._cluster_pids = running.pids
            try:
                yield running
            finally:
                self._cluster_pids = []

    def compare(
        self,
        what: str,
        unit: str,
        loom: Side,
        *references: Side,
        target: Target | None = None,
        suffix: str = "",
        asked: Asked | None = None,
        x: float = 0,
    ) -> None:
        """Measure all, interleaved, and report. `asked` is what peers run for this row."""
        peers = (
            asked.sides(self.options.peers, self.options.scale / 5 if self.options.quick else self.options.scale)
            if asked
            else []
        )
        if self._cluster_pids:
            loom = replace(loom, processes=self._loom_processes)
        measured = interleaved((loom, *references, *peers), self.options.repeat, f"{self._workload + suffix}: {what}")
        n = 1 + len(references)
        self.report(what, unit, measured[0], *measured[1:n], peers=measured[n:], target=target, suffix=suffix, x=x)

    def _loom_processes(self) -> list[psutil.Process]:
        return [psutil.Process(), *below(self._cluster_pids)]

    def report(
        self,
        what: str,
        unit: str,
        loom: Measured,
        *references: Measured,
        peers: Sequence[Measured] = (),
        target: Target | None = None,
        suffix: str = "",
        notes: Sequence[str] = (),
        x: float = 0,
    ) -> None:
        name = self._workload + suffix
        self._report(Row(name, what, unit, loom, list(references), list(peers), target, list(notes), x=x))

    def skip(self, what: str, reason: str, suffix: str = "") -> None:
        self._report(Row(self._workload + suffix, what, notes=[f"left out: {reason}"]))
