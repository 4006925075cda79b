"""A plan as it would be submitted, in columns."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from loom.errors import InvalidPlan
from loom.lore.model import PlanGraph, Texts, group_of
from loom.messages import DGET, DSLICE, RESULT
from loom.resources import Request
from loom.tasktypes.plan import encode_plan
from loom.tasktypes.python import PY_CALL, PY_CALL_OLD, PY_VALUE
from loom.tasktypes.task import Reference, Task

DYNAMIC: Final = frozenset({DSLICE, DGET})
_CALLS: Final = frozenset({PY_CALL, PY_CALL_OLD})

_FIRST: Final = 1 << 32  # number of the plan's first task; futures have lower ones


@dataclass(slots=True)
class DryPlan:
    """A row for each task, inputs before consumers. `inputs` are rows, those of task i end at `input_ends[i]`; what is
    negative there is a future. `depths`: the longest way from a task without inputs, in tasks.

    `functions` are the rows of values that calls take as their function and nobody takes otherwise: they are tasks, but
    no steps of the plan, so drawings and widths leave them out.
    """

    labels: list[str] = field(default_factory=list)
    symbols: list[str] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    config_bytes: list[int] = field(default_factory=list)
    inputs: array[int] = field(default_factory=lambda: array("q"))
    input_ends: array[int] = field(default_factory=lambda: array("Q"))
    depths: list[int] = field(default_factory=list)
    results: set[int] = field(default_factory=set)
    checkpoints: dict[int, str] = field(default_factory=dict)
    group_names: list[str] = field(default_factory=list)
    functions: set[int] = field(default_factory=set)
    n_futures: int = 0

    def __len__(self) -> int:
        return len(self.symbols)

    def inputs_of(self, row: int) -> array[int]:
        return self.inputs[self.input_ends[row - 1] if row else 0 : self.input_ends[row]]

    def dynamic(self) -> list[int]:
        return [row for row, symbol in enumerate(self.symbols) if symbol in DYNAMIC]

    def widths(self) -> list[int]:
        """How many tasks there are of each depth."""
        widths = [0] * (max(self.depths, default=-1) + 1)
        for row, depth in enumerate(self.depths):
            if row not in self.functions:
                widths[depth] += 1
        return widths

    def steps_before(self, row: int) -> list[int]:
        """The tasks whose results it takes, a function that it calls left out."""
        return [source for source in self.inputs_of(row) if source >= 0 and source not in self.functions]

    def folded(self) -> PlanGraph:
        graph = PlanGraph(n_functions=len(self.functions))
        for row, group in enumerate(self.groups):
            if row in self.functions:
                continue
            graph.counts[group] = graph.counts.get(group, 0) + 1
            for source in self.steps_before(row):
                edge = self.groups[source], group
                graph.edges[edge] = graph.edges.get(edge, 0) + 1
        return graph

    def close(self, groups: Texts) -> None:
        """Every task is there: find what is said of the plan as a whole."""
        self.group_names = groups.all()
        called, used = set(), set(self.results)
        for row, symbol in enumerate(self.symbols):
            inputs = self.inputs_of(row)
            if symbol in _CALLS and inputs:
                called.add(inputs[0])
                inputs = inputs[1:]
            used.update(inputs)
        self.functions = {row for row in called - used if row >= 0 and self.symbols[row] == PY_VALUE}
        for row in range(len(self)):
            above = [self.depths[source] for source in self.steps_before(row)]
            self.depths.append(max(above, default=-1) + 1)


def dry_plan(tasks: Task | Iterable[Task]) -> DryPlan:
    """InvalidPlan where `submit` would raise it. O(tasks + inputs), without recursion."""
    futures: dict[Reference, int] = {}

    def number_of(reference: Reference) -> int:
        released = getattr(reference, "released", None)  # a client's future has it
        if callable(released) and released():
            raise InvalidPlan(f"{reference!r:.200} was released or gathered, so it cannot be an input any more")
        return futures.setdefault(reference, len(futures))

    wanted = _listed(tasks)
    if not wanted:
        raise InvalidPlan("there is no task to make a report of: give one task, or several")
    encoded = encode_plan(wanted, _FIRST, number_of)
    plan = DryPlan(n_futures=len(futures), results={number - _FIRST for number in encoded.numbers})
    groups = Texts()
    for chunk in encoded.chunks:
        first = len(plan)
        n_inputs = len(plan.inputs)
        labels = [chunk.labels[label] for label in array("H", chunk.label_of)]
        symbols = [chunk.symbols[symbol] for symbol in array("H", chunk.symbol_of)]
        plan.labels += labels
        plan.symbols += symbols
        plan.groups += [groups.number(group_of(*names)) for names in zip(labels, symbols, strict=True)]
        plan.requests += [chunk.requests[request] for request in array("H", chunk.request_of)]
        ends = array("I", chunk.config_ends)
        plan.config_bytes += [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        plan.inputs.extend([number - _FIRST for number in array("Q", chunk.inputs)])
        plan.input_ends.extend([n_inputs + end for end in array("I", chunk.input_ends)])
        plan.results.update(first + row for row, flags in enumerate(chunk.flags) if flags & RESULT)
        for row, path in zip(array("I", chunk.checkpoint_rows), chunk.checkpoint_paths, strict=True):
            plan.checkpoints[first + row] = os.fsdecode(path)
    plan.close(groups)
    return plan


def _listed(tasks: Task | Iterable[Task]) -> list[Task]:
    if isinstance(tasks, Task):
        return [tasks]
    try:
        return list(tasks)
    except TypeError:
        raise InvalidPlan(f"a report is made of a task or a collection of tasks, not of {tasks!r:.200}") from None
