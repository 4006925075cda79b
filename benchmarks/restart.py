"""`python -m benchmarks.restart`: the server is killed (-9) in the middle of a plan and started again from its journal.

A bag of short Python tasks is submitted, each of which notes that it runs; when half of the results are there, the
server is killed and the same command is given again at once. What is told: how long until it listens, until its
workers are back, until the next result comes, how much longer the whole takes than an undisturbed run beside it, and
how many tasks were run more than once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import machine
from loom.client import Client, tasks
from loom.client.wait import wait_for_workers

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 30.0
_LEAVE_S = 10.0
_PAUSE_S = 0.002
_N_WORKERS = 2


@tasks.py_task(n_direct_args=2)
def noted(path: str, number: int) -> bytes:
    """Append the task's number to a file: one write, so lines of several processes do not mix."""
    with open(path, "ab", buffering=0) as file:
        file.write(b"%d\n" % number)
    return b""


def _start(log: Path, what: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    with log.open("ab") as stderr:
        return subprocess.Popen([sys.executable, "-m", f"loom.cli.{what}", *arguments], stderr=stderr, env=environment)


def _wait_for(log: Path, text: str, skip: int = 0) -> re.Match[str]:
    """The text in the log after its first `skip` characters."""
    deadline = time.monotonic() + _START_S
    while (found := re.search(text, log.read_text()[skip:])) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{text!r} does not come. The log:\n{log.read_text()}")
        time.sleep(_PAUSE_S)
    return found


def run(n_tasks: int, directory: Path, kill: bool) -> dict[str, float]:
    """Seconds and counts of one run."""
    log, ran, journal = directory / "server.log", directory / "ran", directory / "journal"
    server = _start(log, "server", "-p", "0", "--journal", str(journal))
    port = _wait_for(log, r"listening on .*:(\d+)")[1]
    workers = [_start(directory / f"w{i}.log", "worker", "--cpus", "1", "127.0.0.1", port) for i in range(_N_WORKERS)]
    figures: dict[str, float] = {}
    try:
        if wait_for_workers("127.0.0.1", int(port), _N_WORKERS, _START_S) < _N_WORKERS:
            raise RuntimeError("the workers do not come")
        with Client("127.0.0.1", int(port)) as client:
            plan = [noted(str(ran), i) for i in range(n_tasks)]
            began = time.monotonic()
            futures = client.submit(plan)
            client.wait(futures[: n_tasks // 2])
            if kill:
                figures["journal_mb"] = journal.stat().st_size / 1e6
                seen = len(log.read_text())
                server.kill()
                server.wait()
                killed = time.monotonic()
                n_over = sum(future.finished() for future in futures)
                server = _start(log, "server", "-p", port, "--journal", str(journal))
                _wait_for(log, "listening on", seen)
                figures["listens_s"] = time.monotonic() - killed
                _wait_for(log, "all workers are back", seen)
                figures["workers_back_s"] = time.monotonic() - killed
                while sum(future.finished() for future in futures) <= n_over:
                    time.sleep(_PAUSE_S)
                figures["next_result_s"] = time.monotonic() - killed
            client.wait(futures)
            figures["all_s"] = time.monotonic() - began
            figures["rebuilt_mb"] = journal.stat().st_size / 1e6
        lines = ran.read_bytes().split()
        figures["executions"], figures["repeated"] = len(lines), len(lines) - len(set(lines))
        return figures
    finally:
        for process in (*workers, server):
            process.terminate()
        for process in (*workers, server):
            process.wait(_LEAVE_S)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=100_000, metavar="N", help="tasks in the plan  [100000]")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds of two runs  [3]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every run there")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the journal goes  [/var/tmp]")
    given = parser.parse_args()
    runs: list[dict[str, float]] = []
    for number in range(given.repeat):
        with tempfile.TemporaryDirectory(prefix="loom-restart-", dir=given.dir) as directory:
            undisturbed = Path(directory) / "undisturbed"
            disturbed = Path(directory) / "disturbed"
            undisturbed.mkdir()
            disturbed.mkdir()
            base = run(given.tasks, undisturbed, kill=False)
            figures = run(given.tasks, disturbed, kill=True)
        figures["undisturbed_s"] = base["all_s"]
        figures["longer_s"] = figures["all_s"] - base["all_s"]
        runs.append(figures)
        print(f"round {number + 1}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
    print()
    for name in runs[0]:
        values = [figures[name] for figures in runs]
        print(f"{name:<16}{statistics.median(values):>12.4g}  ({min(values):.4g} - {max(values):.4g})")
    print("\n" + ", ".join(f"{name}: {value}" for name, value in machine().items()))
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
