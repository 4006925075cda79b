"""All targets, some at a time, each in a process of its own; and the figures of their logs."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_STATUS: Final = re.compile(r"^#(\d+)\s.*cov: (\d+) ft: (\d+)", re.MULTILINE)
_DONE: Final = re.compile(r"^Done (\d+) runs in (\d+) second", re.MULTILINE)
_EXECUTIONS: Final = re.compile(r"^stat::number_of_executed_units: +(\d+)", re.MULTILINE)  # however it ended
_BROKE: Final = re.compile(r"Test unit written to (\S+)")


def run_all(names: list[str], directory: Path, minutes: float, jobs: int) -> int:
    """How many targets broke."""
    directory.mkdir(parents=True, exist_ok=True)

    def run(name: str) -> int:
        command = [sys.executable, "-m", "fuzz", name, "--minutes", str(minutes), "--directory", str(directory)]
        with open(directory / f"{name}.log", "wb") as log:
            status = subprocess.run(command, stdout=log, stderr=log).returncode
        print(_figures(name, directory), flush=True)
        return status

    print(f"{len(names)} targets, {minutes:g} minutes each; logs in {directory}")
    with ThreadPoolExecutor(jobs) as pool:
        return sum(status != 0 for status in pool.map(run, names))


def say_figures(names: list[str], directory: Path) -> None:
    for name in names:
        if (directory / f"{name}.log").exists():
            print(_figures(name, directory))


def _figures(name: str, directory: Path) -> str:
    """One line. Coverage: edges of the code of Loom that the target imports, and combinations of those."""
    log = (directory / f"{name}.log").read_text(errors="replace")
    statuses = _STATUS.findall(log)
    done = _DONE.search(log)
    runs, edges, features = statuses[-1] if statuses else ("0", "0", "0")
    counted = _EXECUTIONS.search(log)
    if counted:
        runs = counted[1]
    broke = _BROKE.search(log)
    end = f"BROKE: {broke[1]}" if broke else f"{done[2]} s" if done else "under way, or ended before it began"
    return f"{name:<10} {int(runs):>12,} executions, {edges:>5} edges, {features:>6} features; {end}"
