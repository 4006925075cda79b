"""Traces made by hand for the tests of reports."""

from array import array
from collections.abc import Sequence
from pathlib import Path

from loom.ids import task_id
from loom.lore.fold import fold
from loom.lore.model import Report
from loom.trace.reader import read_trace
from loom.trace.records import RAN, VERSION, AnyRecord, KindNamed, Opened, PlanGrew, TasksRan
from loom.trace.writer import TraceWriter

WALL_US = 1_750_000_000_000_000
SESSION = 3


def write(directory: Path, name: str, opened: Opened, *records: AnyRecord) -> None:
    writer = TraceWriter(str(directory), name, opened)
    for record in records:
        writer.add(record)
    writer.close()


def server(clock_us: int = 0, incarnation: int = 1) -> Opened:
    """`clock_us`: what its monotonic clock shows at WALL_US."""
    return Opened(VERSION, "server", 0, "server", 0, [], clock_us, WALL_US, incarnation)


def worker(number: int = 1, cpus: int = 2, clock_us: int = 0, incarnation: int = 1) -> Opened:
    return Opened(VERSION, "worker", number, f"node{number}", cpus, [], clock_us, WALL_US, incarnation)


def plan(tasks: Sequence[tuple[str, str, Sequence[int]]], first: int = 0, session: int = SESSION) -> PlanGrew:
    """Rows of symbol, label, inputs."""
    symbols = sorted({symbol for symbol, _, _ in tasks})
    labels = sorted({label for _, label, _ in tasks})
    inputs = [number for _, _, numbers in tasks for number in numbers]
    ends, end = [], 0
    for _, _, numbers in tasks:
        end += len(numbers)
        ends.append(end)
    return PlanGrew(
        0,
        session,
        first,
        symbols,
        labels,
        array("H", [symbols.index(symbol) for symbol, _, _ in tasks]).tobytes(),
        array("H", [labels.index(label) for _, label, _ in tasks]).tobytes(),
        array("I", ends).tobytes(),
        array("Q", inputs).tobytes(),
    )


def kind(number: int = 0, symbol: str = "loom/py/call", label: str = "", cpus: int = 1) -> KindNamed:
    return KindNamed(number, symbol, label, cpus, [])


def ran(*rows: tuple[int, int, int, int, int, int], session: int = SESSION) -> TasksRan:
    """Rows of number, kind, lane, begun, duration, size."""
    return TasksRan(b"".join(RAN.pack(task_id(session, row[0]), *row[1:]) for row in rows))


def report_of(directory: Path) -> Report:
    return fold(read_trace(directory))


def bag(directory: Path, labels: Sequence[str], cpus: int = 2, duration_us: int = 100) -> Report:
    """Tasks without inputs, one after the other on each core of one worker."""
    tasks = [("loom/py/call", label, ()) for label in labels]
    stretches = [plan(tasks[start : start + 1000], start) for start in range(0, len(tasks), 1000)]
    write(directory, "server", server(), *stretches)
    rows = [(i, 0, i % cpus, i // cpus * duration_us, duration_us, 10) for i in range(len(tasks))]
    batches = [ran(*rows[start : start + 1000]) for start in range(0, len(rows), 1000)]
    write(directory, "node1", worker(cpus=cpus), kind(), *batches)
    return report_of(directory)
