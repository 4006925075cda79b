"""The plan in a server's trace: labels of tasks, and the graph folded by group."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator

from loom import ids
from loom.lore.model import NO_LABEL, PlanGraph, Texts, group_of
from loom.tasktypes.python import PY_CALL, PY_CALL_OLD, PY_VALUE
from loom.trace.records import InputsChanged, PlanGrew


class TracedPlan:
    """The tasks that one server was given, in rows. Tables of texts are shared with the rest of the report."""

    def __init__(self, labels: Texts, symbols: Texts, groups: Texts) -> None:
        self._labels, self._symbols, self._groups = labels, symbols, groups
        self._label_of = array("I")
        self._symbol_of = array("I")
        self._group_of = array("I")
        self._inputs: list[tuple[int, array[int], array[int]]] = []  # of each stretch: session, ends, numbers
        self._starts: list[int] = []  # first id of each stretch, rising once `close` has been called
        self._rows: list[int] = []  # and its first row
        self._lengths: list[int] = []
        self._gone: set[int] = set()  # tasks in whose place others have come
        self._changed: dict[int, tuple[int, array[int]]] = {}  # by id: its symbol and inputs from then on
        self._calls: set[int] = set()  # rows of those that call a function, or did before they were changed

    def grow(self, record: PlanGrew) -> None:
        symbols = [self._symbols.number(text) for text in record.symbols]
        labels = [self._labels.number(text) for text in record.labels]
        rows = list(zip(array("H", record.symbol_of), array("H", record.label_of), strict=True))
        known = {
            (symbol, label): self._groups.number(group_of(record.labels[label], record.symbols[symbol]))
            for symbol, label in set(rows)
            if symbol < len(symbols) and label < len(labels)
        }
        if len(known) != len(set(rows)) or not rows:
            return  # names nothing that there is
        self._starts.append(ids.task_id(record.session, record.first))
        self._rows.append(len(self._label_of))
        self._lengths.append(len(rows))
        self._label_of.extend([labels[label] for _, label in rows])
        self._symbol_of.extend([symbols[symbol] for symbol, _ in rows])
        self._group_of.extend([known[row] for row in rows])
        self._inputs.append((record.session, array("I", record.input_ends), array("Q", record.inputs)))

    def change(self, record: InputsChanged) -> None:
        task = ids.task_id(record.session, record.number)
        if not record.symbol:
            self._gone.add(task)
            return
        self._changed[task] = self._symbols.number(record.symbol), array("Q", record.inputs)

    def close(self) -> None:
        """Nothing more comes; from now on tasks may be asked for."""
        order = sorted(range(len(self._starts)), key=self._starts.__getitem__)
        for column in (self._starts, self._rows, self._lengths):
            column[:] = [column[i] for i in order]
        self._inputs = [self._inputs[i] for i in order]
        symbols = self._symbols.all()
        calls = self._symbols.number(PY_CALL), self._symbols.number(PY_CALL_OLD)
        self._calls.update(row for row, symbol in enumerate(self._symbol_of) if symbol in calls)
        for task, (symbol, _) in self._changed.items():
            row = self._row(task)
            if row is not None:
                self._symbol_of[row] = symbol
                if self._label_of[row] == NO_LABEL:
                    self._group_of[row] = self._groups.number(group_of("", symbols[symbol]))

    def _row(self, task: int) -> int | None:
        stretch = bisect_right(self._starts, task) - 1
        if stretch < 0:
            return None
        offset = task - self._starts[stretch]
        return self._rows[stretch] + offset if offset < self._lengths[stretch] else None

    def label_of(self, task: int) -> int | None:
        """The number of its label; None where the plan does not have the task."""
        row = self._row(task)
        return None if row is None else self._label_of[row]

    def names_of(self, task: int) -> tuple[int, int] | None:
        """The numbers of its label and its symbol."""
        row = self._row(task)
        return None if row is None else (self._label_of[row], self._symbol_of[row])

    def fold(self, graph: PlanGraph) -> None:
        """Add what is here to the graph. O(tasks + inputs)."""
        called: set[int] = set()
        edges = Counter(self._edges(called))
        counts = Counter(self._group_of)
        counts.subtract(self._group_of[row] for row in map(self._row, self._gone) if row is not None)
        counts.subtract(self._group_of[row] for row in called)
        graph.n_functions += len(called)
        for group, count in counts.items():
            if count:
                graph.counts[group] = graph.counts.get(group, 0) + count
        for edge, count in edges.items():
            graph.edges[edge] = graph.edges.get(edge, 0) + count

    def _edges(self, called: set[int]) -> Iterator[tuple[int, int]]:
        """`called` has, once all are through, the rows of values that are only the functions of calls."""
        groups, symbols, changed, calls = self._group_of, self._symbol_of, self._changed, self._calls
        value = self._symbols.number(PY_VALUE)
        used: set[int] = set()  # values that somebody takes as such
        for start, first_row, (session, ends, inputs) in zip(self._starts, self._rows, self._inputs, strict=True):
            base = ids.task_id(session, 0)
            begin = 0
            for offset, end in enumerate(ends):
                function = None
                if first_row + offset in calls and begin < end:
                    function = self._row(base + inputs[begin])
                    if function is not None and symbols[function] == value:
                        called.add(function)
                if start + offset in self._gone:
                    begin = end
                    continue
                change = changed.get(start + offset) if changed else None
                taken = inputs[begin:end] if change is None else change[1]
                begin = end
                group = groups[first_row + offset]
                for position, number in enumerate(taken):
                    row = self._row(base + number)
                    if row is None or (row == function and not position and row in called):
                        continue
                    if symbols[row] == value:
                        used.add(row)
                    yield groups[row], group
        called -= used
