"""All workloads by name, in the order of the table."""

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks import costs, graphs
from benchmarks.bench import Bench

WORKLOADS: Final[Mapping[str, Callable[[Bench], None]]] = {
    "W1": graphs.w1,
    "W1t": graphs.w1t,
    "W1u": graphs.w1u,
    "W2": graphs.w2,
    "W3": graphs.w3,
    "W3n": graphs.w3n,
    "W4": graphs.w4,
    "W5": graphs.w5,
    "W5n": graphs.w5n,
    "W6": graphs.w6,
    "W7": costs.w7,
    "W8": costs.w8,
    "W9": costs.w9,
    "W10": costs.w10,
}
