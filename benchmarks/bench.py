"""What a workload is given: sizes, a cluster, and where its rows go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks import cluster
from benchmarks.cluster import Cluster
from benchmarks.measuring import Measured, Row, Side, Target, interleaved


@dataclass(frozen=True)
class Options:
    repeat: int = 3
    quick: bool = False
    embedded: bool = False
    scale: float = 1.0


class Bench:
    """`report` is called with each row as soon as it is known."""

    def __init__(self, workload: str, options: Options, report: Callable[[Row], None]) -> None:
        self.options = options
        self._workload = workload
        self._report = report

    def size(self, n: int) -> int:
        """As large as asked for."""
        return max(1, round(n * self.options.scale))

    def sizes(self, *always: int, unless_quick: Sequence[int] = ()) -> list[int]:
        return [self.size(n) for n in (*always, *([] if self.options.quick else unless_quick))]

    def loom(self) -> AbstractContextManager[Cluster]:
        return cluster.running(self.options.embedded)

    def compare(
        self, what: str, unit: str, loom: Side, *references: Side, target: Target | None = None, suffix: str = ""
    ) -> None:
        """Measure all, interleaved, and report."""
        measured = interleaved((loom, *references), self.options.repeat)
        self.report(what, unit, measured[0], *measured[1:], target=target, suffix=suffix)

    def report(
        self,
        what: str,
        unit: str,
        loom: Measured,
        *references: Measured,
        target: Target | None = None,
        suffix: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self._report(Row(self._workload + suffix, what, unit, loom, list(references), target, list(notes)))

    def skip(self, what: str, reason: str, suffix: str = "") -> None:
        self._report(Row(self._workload + suffix, what, notes=[f"left out: {reason}"]))
