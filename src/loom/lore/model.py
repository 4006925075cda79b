"""What a report shows, as plain data: columns and tables of names, free of how a trace writes them down.

Times are in microseconds from the report's beginning. Names are numbers in the columns: positions in `Report.workers`,
and in the tables of texts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

FINISHED: Final = 0
FAILED: Final = 1
STOPPED: Final = 2  # cancelled, or given up with its worker: nothing is wrong with the task
OUTCOMES: Final = ("finished", "failed", "stopped")

NO_LABEL: Final = 0  # the text "" in the table of labels
NO_SYMBOL: Final = 0  # the text "unknown" in the table of symbols
UNKNOWN: Final = -1  # in the place of a worker


class Texts:
    """Texts by number, each once, in the order in which they came."""

    def __init__(self, *first: str) -> None:
        self._numbers: dict[str, int] = {}
        for text in first:
            self.number(text)

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def all(self) -> list[str]:
        return list(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def group_of(label: str, symbol: str) -> str:
    """What tasks are coloured and counted by: the label up to the first `:`, the symbol where there is no label."""
    return (label.partition(":")[0] or ":") if label else symbol


@dataclass(slots=True)
class Worker:
    """`file`: whether it wrote a trace of its own. `joined_us`, `left_us`: when it was there, as far as is known."""

    number: int
    name: str
    cpus: int
    extras: list[tuple[str, int]]
    file: bool = False
    joined_us: int | None = None
    left_us: int | None = None


@dataclass(slots=True)
class TaskColumns:
    """A row for each time that a task ran, by the time when it began.

    `lanes`: the first of the worker's cores that it had, or LOOP_LANE of trace.records. `sizes_bytes`: of results.
    """

    ids: array[int] = field(default_factory=lambda: array("Q"))
    labels: array[int] = field(default_factory=lambda: array("I"))
    symbols: array[int] = field(default_factory=lambda: array("I"))
    groups: array[int] = field(default_factory=lambda: array("I"))
    workers: array[int] = field(default_factory=lambda: array("i"))
    lanes: array[int] = field(default_factory=lambda: array("H"))
    cpus: array[int] = field(default_factory=lambda: array("I"))
    begun_us: array[int] = field(default_factory=lambda: array("q"))
    durations_us: array[int] = field(default_factory=lambda: array("Q"))
    sizes_bytes: array[int] = field(default_factory=lambda: array("Q"))
    outcomes: array[int] = field(default_factory=lambda: array("B"))

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self) -> Iterator[tuple[str, array[int]]]:
        for name in self.__slots__:
            yield name, getattr(self, name)


@dataclass(slots=True)
class Transfer:
    """An object that a worker took from another one. `source` is UNKNOWN where no trace names that worker."""

    object: int
    source: int
    target: int
    size_bytes: int
    begun_us: int
    duration_us: int


@dataclass(slots=True)
class Checkpoint:
    """`error` is empty where it was saved."""

    object: int
    worker: int
    size_bytes: int
    begun_us: int
    duration_us: int
    error: str


@dataclass(slots=True)
class Samples:
    """What one worker used, sampled; `cpu_us` is processor time used so far."""

    at_us: list[int] = field(default_factory=list)
    cpu_us: list[int] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    store_bytes: list[int] = field(default_factory=list)
    n_objects: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Failure:
    """A task that failed by itself. `worker` is the name of where, empty where the server found it."""

    id: int
    label: int
    symbol: int
    group: int
    worker: str
    at_us: int
    error: str


@dataclass(slots=True)
class PlanGraph:
    """The plan folded by group: the tasks of each, and of pairs how many inputs the second takes of the first.

    Functions that calls take are no step of the plan, so they are left out: so many.
    """

    counts: dict[int, int] = field(default_factory=dict)
    edges: dict[tuple[int, int], int] = field(default_factory=dict)
    n_functions: int = 0


@dataclass(slots=True)
class Report:
    """`begun_wall_us`: the wall clock (since 1970) at time 0; `span_us`: until the last thing that the trace has."""

    begun_wall_us: int
    span_us: int
    workers: list[Worker]
    labels: list[str]
    symbols: list[str]
    groups: list[str]
    tasks: TaskColumns
    transfers: list[Transfer]
    checkpoints: list[Checkpoint]
    samples: list[Samples]  # by worker
    failures: list[Failure]
    plan: PlanGraph
    notes: list[str]  # what is wrong with the trace, for people

    def name_of(self, label: int, symbol: int) -> str:
        """What people call a task: its label, or where it has none its symbol."""
        return self.labels[label] or self.symbols[symbol]
