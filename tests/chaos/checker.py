"""What is counted after a run: all of it has to be nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chaos.client import Report
from chaos.cluster import Cluster
from chaos.ledger import Ledger

_PATIENCE_S: Final = 15.0  # for what ends by itself, soon
_PAUSE_S: Final = 0.05

_FAULTS: Final = ("internal error", "turn failed", "WARNING closing the link of", "is missing in the server's journal")
_RING: Final = "/memfd:loom-results (deleted)"  # of an executor

Descriptors = dict[int, Counter[str]]
"""By process, how many descriptors of each kind."""


@dataclass
class Findings:
    """What a run showed. All lists have to be empty."""

    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    accepted_twice: list[str] = field(default_factory=list)
    not_executed: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    n_strikes: int = 0  # of the fault; the tasks that misbehave are not counted
    n_tasks: int = 0
    n_results: int = 0
    n_failed_rightly: int = 0
    n_executions: int = 0
    n_repeated: int = 0
    n_accepted: int = 0
    n_adopted: int = 0  # of these: of workers that came back with them
    n_server_kills: int = 0
    repeated: dict[str, int] = field(default_factory=dict)  # after a server's restart, see Ledger

    def bad(self) -> dict[str, list[str]]:
        return {name: found for name, found in self.categories().items() if found}

    def categories(self) -> dict[str, list[str]]:
        return {
            "lost": self.lost,
            "wrong": self.wrong,
            "accepted twice": self.accepted_twice,
            "accepted, not executed": self.not_executed,
            "left over": self.left_over,
            "trouble": self.trouble,
        }

    def add_report(self, name: str, report: Report) -> None:
        self.n_tasks += report.n_tasks
        self.n_results += report.n_results
        self.n_failed_rightly += report.n_failed_rightly
        self.lost += report.lost
        self.wrong += report.wrong
        self.left_over += report.left
        if report.error:
            self.trouble.append(f"{name}: {report.error}")

    def add_ledger(self, ledger: Ledger, repeats: bool, most_repeated: int | None = None) -> None:
        """`repeats`: whether there was a reason to run anything again; `most_repeated`: how often at most."""
        self.n_executions = ledger.begun.total()
        self.n_repeated = ledger.n_repeated()
        self.n_accepted = ledger.accepted.total()
        self.n_adopted = ledger.n_adopted
        self.repeated = ledger.repeated_after_restarts()
        self.accepted_twice += ledger.accepted_twice()
        self.not_executed += ledger.never_run()
        if self.n_repeated and not repeats:
            self.trouble.append(f"{self.n_repeated} tasks were run again without a reason")
        elif most_repeated is not None and self.n_repeated > most_repeated:
            self.trouble.append(f"{self.n_repeated} tasks were run again, {self.repeated}: {most_repeated} at most")
        self.trouble += [f"one attempt run twice: {run}" for run in ledger.run_twice()]


def _until_empty(found: Callable[[], list[str]]) -> list[str]:
    """What is still found after some patience."""
    deadline = time.monotonic() + _PATIENCE_S
    while (left := found()) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    return left


# -- While workers live -----------------------------------------------------------------------------------------------


def stored(cluster: Cluster) -> list[str]:
    """Files of objects and runs, although nobody has a result any more; those of killed workers, too."""

    def found() -> list[str]:
        inside = ("loom-worker-*/store/*", "loom-worker-*/run/*")
        return [str(path) for place in cluster.places for pattern in inside for path in place.glob(pattern)]

    return _until_empty(found)


def descriptors(cluster: Cluster) -> Descriptors:
    """Of the server, and of all processes of living workers."""
    found: Descriptors = {}
    for process in [cluster.server, *cluster.living_workers()]:
        for one in process.tree():
            kinds: Counter[str] = Counter()
            try:
                for name in os.listdir(f"/proc/{one.pid}/fd"):
                    kinds[_kind(os.readlink(f"/proc/{one.pid}/fd/{name}"), cluster.wdir)] += 1
            except OSError:
                continue
            found[one.pid] = kinds
    return found


def _kind(target: str, wdir: Path) -> str:
    if target.startswith(str(wdir)):
        return "object" if "/store/" in target or "/run/" in target else "worker directory"
    return target.partition(":")[0] if not target.startswith("/") else target


def more_descriptors(cluster: Cluster, before: Descriptors) -> list[str]:
    """Processes that were there before and have more descriptors of some kind now.

    Connections between workers are made when one first needs an object of the other's, and kept: two for each other
    worker and direction are right. An executor for large light tasks is started when there is one, and kept.
    """

    def found() -> list[str]:
        now = descriptors(cluster)
        allowed = Counter({"socket": 4 * len(cluster.living_workers()), "anon_inode": 2, _RING: 1})
        return [
            f"process {pid} (of {_who(cluster, pid)}): {count} descriptors of kind {kind}, {before[pid][kind]} before"
            for pid, kinds in now.items()
            if pid in before
            for kind, count in kinds.items()
            if count > before[pid][kind] + allowed[kind]
        ]

    return _until_empty(found)


def _who(cluster: Cluster, pid: int) -> str:
    """Whose it is, and how many processes that has."""
    for process in [cluster.server, *cluster.living_workers()]:
        tree = process.tree()
        if any(one.pid == pid for one in tree):
            return f"{process.name}, which has {len(tree)} processes"
    return "somebody who has gone"


# -- After the end ----------------------------------------------------------------------------------------------------


def left_after_end(cluster: Cluster) -> list[str]:
    """Processes, directories, shared memory."""

    def processes() -> list[str]:
        return [f"process {process.pid} {' '.join(process.cmdline())[:120]}" for process in cluster.marked()]

    def files() -> list[str]:
        places = [path for place in {*cluster.places, cluster.directory / "tmp"} for path in place.glob("*")]
        shared = [path for path in Path("/dev/shm").iterdir() if any(f"-{pid}-" in path.name for pid in cluster.pids)]
        return [str(path) for path in [*places, *shared]]

    return _until_empty(processes) + _until_empty(files)


def journal_damage(cluster: Cluster) -> list[str]:
    """What `loom journal check` finds; a last record that is not complete is none."""
    if cluster.setup.journal is None or not cluster.setup.journal.exists():
        return []
    command = [str(Path(sys.executable).with_name("loom")), "journal", "check", str(cluster.setup.journal)]
    done = subprocess.run(command, capture_output=True, text=True)
    return [f"journal: {done.stdout}{done.stderr}"] if done.returncode else []


def logs_with_faults(cluster: Cluster) -> list[str]:
    """Logs in which a process says that it or a peer is at fault, or shows a traceback of its own."""
    found = []
    for path in sorted((cluster.directory / "log").iterdir()):
        for line in path.read_text(errors="replace").splitlines():
            if any(word in line for word in _FAULTS) or line.startswith("Traceback"):
                found.append(f"{path.name}: {line[:200]}")
                break
    return found
