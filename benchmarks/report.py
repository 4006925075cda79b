"""`python -m benchmarks.report`: what a report costs, on a trace that is made up.

Needs `hyperloom[report]`; to measure how a browser takes it also playwright (`pip install playwright`) and Chromium.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from array import array
from pathlib import Path

from loom.ids import task_id
from loom.lore.fold import fold
from loom.lore.page import report_page
from loom.trace.reader import read_trace
from loom.trace.records import (
    LOOP_LANE,
    RAN,
    VERSION,
    KindNamed,
    ObjectFetched,
    Opened,
    PlanGrew,
    Sampled,
    TaskEndedBadly,
    TaskFailed,
    TasksRan,
    WorkerJoined,
)
from loom.trace.writer import TraceWriter

N_TASKS = 50_000

_BATCH = 500  # tasks in one record
_WALL_US = 1_790_000_000_000_000
_STAGES = ("load", "align", "sort", "call", "filter", "merge", "plot")
_SYMBOLS = ("loom/py/call", "loom/run/run", "loom/data/merge")
_MEAN_US = (4_000, 20_000, 9_000, 30_000, 2_000, 1_000, 15_000)


def make_trace(directory: Path, n_tasks: int = N_TASKS, n_workers: int = 4, cpus: int = 8) -> None:
    """Stages of `n_tasks / 7` tasks each, every one takes two of the stage before; labels like `align: 123`."""
    chance = random.Random(7)
    server = TraceWriter(str(directory), "server", _opened("server", 0, "server", 0))
    workers: list[_WorkerFile] = []
    for number in range(1, n_workers + 1):
        name = f"node{number}"
        server.add(WorkerJoined(0, number, name, cpus, []))
        worker = _WorkerFile(TraceWriter(str(directory), name, _opened("worker", number, name, cpus)))
        for kind, stage in enumerate(_STAGES):
            worker.writer.add(KindNamed(kind, _SYMBOLS[kind % 3], stage, 1, []))
        workers.append(worker)
    width = max(n_tasks // len(_STAGES), 1)
    failing = n_tasks // 2
    free = [(0, number, core) for number in range(n_workers) for core in range(cpus)]
    for first in range(0, n_tasks, _BATCH):
        numbers = range(first, min(first + _BATCH, n_tasks))
        server.add(_plan_of(numbers, width, chance))
        for number in numbers:
            free = _run(number, width, free, workers, chance, failing)
    end = max(at for at, _, _ in free)
    for number, worker in enumerate(workers):
        worker.flush()
        _sample(worker.writer, number, end, chance)
        worker.writer.close()
    server.add(TaskFailed(end, 1, failing, "node1", "Program terminated with status 2\nStderr:\nno such file\n"))
    server.close()


class _WorkerFile:
    """Tasks that ended well go into one record for so many."""

    def __init__(self, writer: TraceWriter) -> None:
        self.writer = writer
        self._rows: list[tuple[int, int, int, int, int, int]] = []

    def add_ran(self, *row: int) -> None:
        task, kind, lane, begun_us, duration_us, size_bytes = row
        self._rows.append((task, kind, lane, begun_us, duration_us, size_bytes))
        if len(self._rows) == _BATCH:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self.writer.add(TasksRan(b"".join(RAN.pack(*row) for row in self._rows)))
            self._rows = []


def _opened(role: str, worker: int, name: str, cpus: int) -> Opened:
    return Opened(VERSION, role, worker, name, cpus, [], 0, _WALL_US, 1)


def _stage(number: int, width: int) -> int:
    return min(number // width, len(_STAGES) - 1)


def _plan_of(numbers: range, width: int, chance: random.Random) -> PlanGrew:
    inputs, ends = array("Q"), array("I")
    for number in numbers:
        if number >= width:
            inputs.extend([number - width, number - 1 - chance.randrange(width)])
        ends.append(len(inputs))
    stages = [_stage(number, width) for number in numbers]
    return PlanGrew(
        0,
        1,
        numbers.start,
        list(_SYMBOLS),
        [f"{_STAGES[stage]}: {number}" for number, stage in zip(numbers, stages, strict=True)],
        array("H", [stage % 3 for stage in stages]).tobytes(),
        array("H", range(len(numbers))).tobytes(),
        ends.tobytes(),
        inputs.tobytes(),
    )


def _run(
    number: int,
    width: int,
    free: list[tuple[int, int, int]],
    workers: list[_WorkerFile],
    chance: random.Random,
    failing: int,
) -> list[tuple[int, int, int]]:
    """Let the core that is free first have the task."""
    at, worker, core = free[0]
    stage = _stage(number, width)
    duration = max(int(chance.lognormvariate(0, 0.6) * _MEAN_US[stage]), 5)
    task, writer = task_id(1, number), workers[worker]
    if number == failing:
        writer.writer.add(TaskEndedBadly(task, stage, core, at, duration, "Program terminated with status 2"))
    else:
        lane = LOOP_LANE if stage == 5 and number % 4 == 0 else core
        writer.add_ran(task, stage, lane, at, duration, chance.randrange(1, 1 << 20))
    if number % 50 == 0 and len(workers) > 1:
        writer.writer.add(
            ObjectFetched(task, (worker + 1) % len(workers) + 1, chance.randrange(1 << 24), at, duration // 2)
        )
    rest = [*free[1:], (at + duration + chance.randrange(400), worker, core)]
    rest.sort()
    return rest


def _sample(worker: TraceWriter, number: int, end_us: int, chance: random.Random) -> None:
    used = 0
    for at in range(0, end_us, max(end_us // 400, 1)):
        used += int(chance.uniform(0.6, 1.0) * 8 * max(end_us // 400, 1))
        memory = int((1 + number / 4 + at / end_us) * 2**30 + chance.randrange(2**27))
        worker.add(Sampled(at, used, memory, memory // 4, 1000))


def chromium() -> str:
    """Where the browser is."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("There is no Chromium here: apt install chromium")
    return found


def painted_ms(path: Path) -> tuple[int, int]:
    """Milliseconds from opening the file in Chromium to painted charts, and to the next picture after a zoom."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(path.resolve().as_uri())
        page.wait_for_function("document.documentElement.dataset.painted")
        opened = int(page.evaluate("document.documentElement.dataset.painted"))
        zoomed = page.evaluate(
            """() => new Promise((done) => {
                const range = Bokeh.documents[0].get_model_by_name("time");
                const begun = performance.now();
                range.setv({start: range.end / 4, end: range.end / 2});
                requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)));
            })"""
        )
        browser.close()
    return opened, round(zoomed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--tasks", type=int, default=N_TASKS, metavar="N", help=f"tasks in the trace  [{N_TASKS}]")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="workers of eight cores  [4]")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the report there")
    parser.add_argument("--no-browser", action="store_true", help="do not open it in Chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "trace"
        make_trace(directory, given.tasks, given.workers)
        clock = time.perf_counter()
        trace = read_trace(directory)
        read, clock = time.perf_counter() - clock, time.perf_counter()
        report = fold(trace)
        folded, clock = time.perf_counter() - clock, time.perf_counter()
        content = report_page(report, "Made up", with_charts=True)
        written = time.perf_counter() - clock
        static = report_page(report, "Made up", with_charts=False)
        path = given.output or Path(place) / "report.html"
        path.write_text(content, "utf-8")
        print(f"{given.tasks:,} tasks: read {read:.2f} s, folded {folded:.2f} s, page {written:.2f} s")
        print(f"{path.stat().st_size / 1e6:.1f} MB with charts, {len(static.encode()) / 1e6:.1f} MB without")
        if not given.no_browser:
            opened, zoomed = painted_ms(path)
            print(f"painted in Chromium after {opened} ms, zoomed after {zoomed} ms")


if __name__ == "__main__":
    main()
