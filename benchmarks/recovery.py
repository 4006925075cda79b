"""`python -m benchmarks.recovery`: what it costs that one of two workers is killed half-way.

Three runs in turn, on a fresh server and two fresh workers of one core each: undisturbed; one worker killed (-9) after
half of the time that the undisturbed run has just taken; the same, and another worker started at that moment. The
figure is the time until all results are finished, as a ratio to the undisturbed run beside it; the table has medians,
with the least and the most.

What would be ideal, if the kill were known of at once and another worker were there at once: for the bag, whose results
are with the client, 1.5 with the one worker that is left, as it takes twice as long for the second half, and 1.0 with
another one. Of the stencil only the last row exists at any time, half of it is lost, and that depends on everything
before: the first half has to be made again, which gives 2.5 and 1.5.

With `--sleep` tasks wait instead of computing: what others do on the machine then disturbs little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from benchmarks import bodies, cluster
from benchmarks.results import machine
from loom.client import Future, Task, tasks

TASK_S = 0.1
DATA_BYTES = 1 << 20
STENCIL_WIDTH = 16

_WORKER = "loom.cli.worker"
_LEAVE_S = 15.0
_MODES = ("undisturbed", "killed", "killed and replaced")

Workload = Callable[[int, bool], list[Task]]


def step(seconds: float, asleep: bool, size_bytes: int, *inputs: bodies.Input) -> bytes:
    """Read all inputs, compute or sleep for a while, make an object."""
    for value in inputs:
        value.read()
    if asleep:
        time.sleep(seconds)
    else:
        bodies.busy(seconds)
    return bytes(size_bytes)


step_task = tasks.py_task("step", n_direct_args=3)(step)


def bag(n: int, asleep: bool) -> list[Task]:
    """Independent tasks; their results are empty."""
    return [step_task(TASK_S, asleep, 0) for _ in range(n)]


def stencil(n: int, asleep: bool) -> list[Task]:
    """Rows of tasks that take up to three objects of the row before; only the last row is kept."""
    row = [step_task(TASK_S, asleep, DATA_BYTES) for _ in range(STENCIL_WIDTH)]
    for _ in range(n // STENCIL_WIDTH - 1):
        row = [step_task(TASK_S, asleep, DATA_BYTES, *row[max(0, i - 1) : i + 2]) for i in range(STENCIL_WIDTH)]
    return row


def _workers() -> list[psutil.Process]:
    """The processes of workers below this one that serve tasks, and not those that only look after one."""
    found = [p for p in psutil.Process().children(recursive=True) if p.is_running() and _WORKER in p.cmdline()]
    parents = {process.ppid() for process in found}
    return [process for process in found if process.pid not in parents]


@contextmanager
def _replacement(port: int) -> Iterator[None]:
    """Another worker, as the scripts of the cluster start theirs."""
    command = [sys.executable, "-m", _WORKER, "--until-stdin-closes", "--cpus", "1", "127.0.0.1", str(port)]
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def makespan_s(plan: list[Task], kill_after_s: float | None = None, replaced: bool = False) -> float:
    """From submitting to the last result; without what starting the cluster takes."""
    with cluster.running(embedded=False) as running:
        running.client.wait(running.client.submit([step_task(0.0, True, 0) for _ in range(20)]))
        victim = _workers()[0]
        over = threading.Event()

        def harm() -> None:
            if over.wait(kill_after_s):
                return
            victim.kill()
            if replaced:
                with _replacement(running.port):
                    over.wait()

        began = time.perf_counter()
        futures: list[Future] = running.client.submit(plan)
        killer = threading.Thread(target=harm)
        if kill_after_s is not None:
            killer.start()
        try:
            running.client.wait(futures)
            return time.perf_counter() - began
        finally:
            over.set()
            if kill_after_s is not None:
                killer.join()


def measure(make_plan: Callable[[], list[Task]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each run, by mode."""
    taken: dict[str, list[float]] = {mode: [] for mode in _MODES}
    for _ in range(repeat):
        undisturbed_s = makespan_s(make_plan())
        taken[_MODES[0]].append(undisturbed_s)
        taken[_MODES[1]].append(makespan_s(make_plan(), undisturbed_s / 2))
        taken[_MODES[2]].append(makespan_s(make_plan(), undisturbed_s / 2, replaced=True))
    return taken


def _spread(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} - {max(values):.2f})"


def _line(*cells: str) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, (8, 20, 24, 22, 6), strict=True)).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds of three runs  [3]")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="length of an undisturbed run  [20]")
    parser.add_argument("--sleep", action="store_true", help="tasks wait instead of computing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds of every run there")
    given = parser.parse_args()
    n_tasks = max(round(2 * given.seconds / TASK_S), 2 * STENCIL_WIDTH)
    everything: dict[str, object] = {"machine": machine(), "n_tasks": n_tasks}
    print(_line("", "one worker of two", "time", "ratio", "ideal"))
    for workload, ideals in ((bag, (1.0, 1.5, 1.0)), (stencil, (1.0, 2.5, 1.5))):
        taken = measure(partial(workload, n_tasks, given.sleep), given.repeat)
        everything[workload.__name__] = taken
        for mode, ideal in zip(_MODES, ideals, strict=True):
            ratios = [one / base for one, base in zip(taken[mode], taken[_MODES[0]], strict=True)]
            print(
                _line(workload.__name__, mode, _spread(taken[mode], " s"), _spread(ratios), f"{ideal:.1f}"), flush=True
            )
    print("\n" + ", ".join(f"{name}: {value}" for name, value in machine().items()))
    if given.json:
        given.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
