"""From the files of a trace to what a report shows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat

from loom import ids
from loom.lore.model import (
    FAILED,
    FINISHED,
    NO_LABEL,
    NO_SYMBOL,
    STOPPED,
    UNKNOWN,
    Checkpoint,
    Failure,
    PlanGraph,
    Report,
    Samples,
    TaskColumns,
    Texts,
    Transfer,
    Worker,
    group_of,
)
from loom.lore.plan import TracedPlan
from loom.lore.presence import Presence
from loom.trace.reader import Trace, TraceFile, rows_of
from loom.trace.records import (
    CheckpointSaved,
    InputsChanged,
    KindNamed,
    ObjectFetched,
    PlanGrew,
    Sampled,
    TaskEndedBadly,
    TaskFailed,
    TasksRan,
    WorkerJoined,
    WorkerLeft,
)


def fold(trace: Trace) -> Report:
    """Everything that a trace says, on one axis of time. O(records + tasks)."""
    return _Fold(trace).report()


@dataclass(frozen=True, slots=True)
class _Kind:
    """What tasks of a kind have in common. `label` counts where no plan is at hand."""

    symbol: int
    label: str
    cpus: int


class _Fold:
    """Takes files in: servers' first, because they have the labels.

    While it takes, times are those of the wall clock: that is what the hosts have in common.
    """

    def __init__(self, trace: Trace) -> None:
        self._labels, self._symbols, self._groups = Texts(""), Texts("unknown"), Texts()
        self._notes = list(trace.notes)
        self._workers: list[Worker] = []
        self._samples: list[Samples] = []
        self._worker_at: dict[tuple[int, int], int] = {}  # by incarnation of the server and number
        self._plans: dict[int, TracedPlan] = {}
        self._failures: dict[tuple[int, int], Failure] = {}  # by incarnation and task
        self._tasks = TaskColumns()
        self._transfers: list[Transfer] = []
        self._checkpoints: list[Checkpoint] = []
        self._presence = Presence()
        servers = [file for file in trace.files if file.opened.role == "server"]
        workers = [file for file in trace.files if file.opened.role != "server"]
        for file in servers:
            self._plans.setdefault(file.opened.incarnation, TracedPlan(self._labels, self._symbols, self._groups))
            self._take_server(file)
            self._presence.take(None, file)
        for plan in self._plans.values():
            plan.close()
        for file in workers:
            position = self._worker(file.opened.incarnation, file.opened.worker)
            worker = self._workers[position]
            worker.name, worker.cpus, worker.file = file.opened.name, file.opened.cpus, True
            worker.extras = file.opened.extras
            self._presence.take(position, file)
        for file in workers:
            self._take_worker(file)
        if not servers:
            self._notes.append(
                "The server's file is missing: labels are known up to the first colon only, and there is no graph of "
                "the plan"
            )

    def _worker(self, incarnation: int, number: int) -> int:
        position = self._worker_at.setdefault((incarnation, number), len(self._workers))
        if position == len(self._workers):
            self._workers.append(Worker(number, f"worker {number}", 0, []))
            self._samples.append(Samples())
        return position

    # -- Files of servers ---------------------------------------------------------------------------------------------

    def _take_server(self, file: TraceFile) -> None:
        incarnation, wall = file.opened.incarnation, file.wall_us
        plan = self._plans[incarnation]
        for record in file.records:
            match record:
                case PlanGrew():
                    plan.grow(record)
                case InputsChanged():
                    plan.change(record)
                case TaskFailed():
                    task = ids.task_id(record.session, record.number)
                    failure = Failure(task, NO_LABEL, NO_SYMBOL, 0, record.worker, wall(record.at_us), record.error)
                    self._failures[incarnation, task] = failure
                case WorkerJoined():
                    worker = self._workers[self._worker(incarnation, record.worker)]
                    worker.name, worker.cpus, worker.extras = record.name, record.cpus, record.extras
                    worker.joined_us = wall(record.at_us)
                case WorkerLeft():
                    self._workers[self._worker(incarnation, record.worker)].left_us = wall(record.at_us)

    # -- Files of workers ---------------------------------------------------------------------------------------------

    def _take_worker(self, file: TraceFile) -> None:
        incarnation, wall = file.opened.incarnation, file.wall_us
        here = self._worker(incarnation, file.opened.worker)
        kinds: dict[int, _Kind] = {}
        for record in file.records:
            match record:
                case TasksRan():
                    self._take_tasks(record, kinds, here, incarnation, wall(0))
                case KindNamed():
                    kinds[record.kind] = _Kind(self._symbols.number(record.symbol), record.label, record.cpus)
                case TaskEndedBadly():
                    self._take_bad_end(record, kinds, here, incarnation, wall(record.begun_us))
                case ObjectFetched():
                    source = self._worker_at.get((incarnation, record.source), UNKNOWN)
                    begun = wall(record.begun_us)
                    size, duration = record.size_bytes, record.duration_us
                    self._transfers.append(Transfer(record.object, source, here, size, begun, duration))
                case Sampled():
                    samples = self._samples[here]
                    samples.at_us.append(wall(record.at_us))
                    samples.cpu_us.append(record.cpu_us)
                    samples.memory_bytes.append(record.memory_bytes)
                    samples.store_bytes.append(record.store_bytes)
                    samples.n_objects.append(record.n_objects)
                case CheckpointSaved():
                    begun = wall(record.begun_us)
                    size, duration = record.size_bytes, record.duration_us
                    self._checkpoints.append(Checkpoint(record.object, here, size, begun, duration, record.error))

    def _take_tasks(self, record: TasksRan, kinds: dict[int, _Kind], here: int, incarnation: int, zero: int) -> None:
        rows, columns = list(rows_of(record)), self._tasks
        if not rows:
            return
        tasks, kind_of, lanes, begun_us, durations_us, sizes_bytes = zip(*rows, strict=True)
        of_task = [kinds.get(kind) or self._unnamed(kinds, kind) for kind in kind_of]
        columns.ids.extend(tasks)
        columns.labels.extend(self._labels_of(tasks, of_task, incarnation))
        columns.symbols.extend([kind.symbol for kind in of_task])
        columns.cpus.extend([kind.cpus for kind in of_task])
        columns.workers.extend(repeat(here, len(tasks)))
        columns.lanes.extend(lanes)
        columns.begun_us.extend([zero + begun for begun in begun_us])
        columns.durations_us.extend(durations_us)
        columns.sizes_bytes.extend(sizes_bytes)
        columns.outcomes.extend(repeat(FINISHED, len(tasks)))

    def _labels_of(self, tasks: Sequence[int], of_task: list[_Kind], incarnation: int) -> list[int]:
        label_of = self._label_finder(incarnation)
        labels = []
        for task, kind in zip(tasks, of_task, strict=True):
            label = label_of(task)
            labels.append(self._labels.number(kind.label) if label is None else label)
        return labels

    def _label_finder(self, incarnation: int) -> Callable[[int], int | None]:
        plan = self._plans.get(incarnation)
        return plan.label_of if plan else lambda _: None

    def _unnamed(self, kinds: dict[int, _Kind], number: int) -> _Kind:
        """A kind whose record is damaged."""
        kinds[number] = kind = _Kind(NO_SYMBOL, "", 1)
        return kind

    def _take_bad_end(
        self, record: TaskEndedBadly, kinds: dict[int, _Kind], here: int, incarnation: int, begun: int
    ) -> None:
        task, columns = record.task, self._tasks
        kind = kinds.get(record.kind) or self._unnamed(kinds, record.kind)
        label = self._label_finder(incarnation)(task)
        columns.ids.append(task)
        columns.labels.append(self._labels.number(kind.label) if label is None else label)
        columns.symbols.append(kind.symbol)
        columns.cpus.append(kind.cpus)
        columns.workers.append(here)
        columns.lanes.append(record.lane)
        columns.begun_us.append(begun)
        columns.durations_us.append(record.duration_us)
        columns.sizes_bytes.append(0)
        # The server says which tasks failed. Without its file what ended with a text counts as failed.
        failed = (incarnation, task) in self._failures or (incarnation not in self._plans and bool(record.error))
        columns.outcomes.append(FAILED if failed else STOPPED)
        if failed:
            name, at = self._workers[here].name, begun + record.duration_us
            failure = self._failures.setdefault(
                (incarnation, task), Failure(task, NO_LABEL, NO_SYMBOL, 0, name, at, record.error)
            )
            failure.label, failure.symbol = columns.labels[-1], kind.symbol

    # -- The whole ----------------------------------------------------------------------------------------------------

    def report(self) -> Report:
        labels, symbols = self._labels.all(), self._symbols.all()
        group = partial(_group_number, labels, symbols, self._groups, {})
        self._tasks.groups.extend(map(group, self._tasks.labels, self._tasks.symbols))
        self._complete_failures(labels, symbols)
        graph = PlanGraph()
        for plan in self._plans.values():
            plan.fold(graph)
        first, last = self._bounds()
        self._presence.complete(self._workers, self._worker_at)
        report = Report(
            begun_wall_us=first,
            span_us=last - first,
            workers=self._workers,
            labels=labels,
            symbols=symbols,
            groups=self._groups.all(),
            tasks=_sorted_by_time(self._tasks),
            transfers=sorted(self._transfers, key=lambda transfer: transfer.begun_us),
            checkpoints=sorted(self._checkpoints, key=lambda checkpoint: checkpoint.begun_us),
            samples=self._samples,
            failures=sorted(self._failures.values(), key=lambda failure: (failure.at_us, failure.id)),
            plan=graph,
            notes=self._notes,
        )
        _shift(report, -first)
        self._note_silent_workers()
        return report

    def _complete_failures(self, labels: list[str], symbols: list[str]) -> None:
        """Those that no worker wrote down have their names from the plan."""
        for (incarnation, task), failure in self._failures.items():
            plan = self._plans.get(incarnation)
            named = plan.names_of(task) if plan else None
            if named is not None:
                failure.label, failure.symbol = named
            failure.group = self._groups.number(group_of(labels[failure.label], symbols[failure.symbol]))

    def _bounds(self) -> tuple[int, int]:
        """Of what tasks and transfers do; where there is none of them, of all that is known."""
        times = list(self._spans())
        if not times:
            times = [(at, at) for samples in self._samples for at in samples.at_us]
            times += [(worker.joined_us,) * 2 for worker in self._workers if worker.joined_us is not None]
            times += [(failure.at_us,) * 2 for failure in self._failures.values()]
        return (min(begun for begun, _ in times), max(end for _, end in times)) if times else (0, 0)

    def _spans(self) -> Iterator[tuple[int, int]]:
        begun, durations = self._tasks.begun_us, self._tasks.durations_us
        if begun:
            yield min(begun), max(map(int.__add__, begun, durations))
        moves: list[Transfer | Checkpoint] = [*self._transfers, *self._checkpoints]
        for moved in moves:
            yield moved.begun_us, moved.begun_us + moved.duration_us

    def _note_silent_workers(self) -> None:
        silent = [worker.name for worker in self._workers if not worker.file]
        if silent:
            names = ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
            self._notes.append(
                f"No file of {names}: what ran there is not shown. The directory given to set_trace has to be on a "
                "file system that the server and all workers share"
            )


def _group_number(
    labels: list[str], symbols: list[str], groups: Texts, known: dict[tuple[int, int], int], label: int, symbol: int
) -> int:
    number = known.get((label, symbol))
    if number is None:
        number = known[label, symbol] = groups.number(group_of(labels[label], symbols[symbol]))
    return number


def _sorted_by_time(tasks: TaskColumns) -> TaskColumns:
    order = sorted(range(len(tasks)), key=tasks.begun_us.__getitem__)
    return TaskColumns(*(array(column.typecode, map(column.__getitem__, order)) for _, column in tasks.columns()))


def _shift(report: Report, by_us: int) -> None:
    """Move everything by so much."""
    tasks = report.tasks
    tasks.begun_us = array("q", [begun + by_us for begun in tasks.begun_us])
    moves: list[Transfer | Checkpoint] = [*report.transfers, *report.checkpoints]
    for moved in moves:
        moved.begun_us += by_us
    for failure in report.failures:
        failure.at_us += by_us
    for samples in report.samples:
        samples.at_us = [at + by_us for at in samples.at_us]
    for worker in report.workers:
        worker.joined_us = None if worker.joined_us is None else worker.joined_us + by_us
        worker.left_us = None if worker.left_us is None else worker.left_us + by_us
