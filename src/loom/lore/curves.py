"""What was in use over time, by all workers together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loom.lore.figures import cores_in_use, cores_there, processors_in_use, total_over_time
from loom.lore.model import Report


@dataclass(frozen=True, slots=True)
class Curves:
    """Figures over time, on common times. `memory` and `store` are in bytes; `memory_of` by worker."""

    bins_us: Sequence[float]  # ends of the stretches that `cores` are means of, 0 first
    cores: Sequence[float]
    cores_there: Sequence[int]
    times_us: Sequence[float]
    processors: Sequence[float]
    memory: Sequence[float]
    store: Sequence[float]
    memory_of: Mapping[int, Sequence[float]]


def curves(report: Report, n_times: int) -> Curves:
    """On so many times over the span."""
    times = [report.span_us * i / n_times for i in range(n_times + 1)]
    sampled = {number: samples for number, samples in enumerate(report.samples) if samples.at_us}
    ends = {number: _end(report, number) for number in sampled}
    # what was used until a sample is drawn from the sample before it on
    used = [
        (one.at_us[:-1], processors_in_use(one.at_us, one.cpu_us)[1:], ends[number]) for number, one in sampled.items()
    ]
    memory_of = {
        number: total_over_time([(one.at_us, one.memory_bytes, ends[number])], times) for number, one in sampled.items()
    }
    return Curves(
        bins_us=times,
        cores=cores_in_use(report, n_times),
        cores_there=cores_there(report, times),
        times_us=times,
        processors=total_over_time(used, times),
        memory=[sum(values) for values in zip(*memory_of.values(), strict=True)] if memory_of else [],
        store=total_over_time([(one.at_us, one.store_bytes, ends[number]) for number, one in sampled.items()], times),
        memory_of=memory_of,
    )


def _end(report: Report, worker: int) -> float:
    """Until when its last sample holds."""
    left_us = report.workers[worker].left_us
    return math.inf if left_us is None else left_us
