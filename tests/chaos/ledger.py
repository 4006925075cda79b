"""The ledger: one line an event, appended in one write, so that lines of many processes do not mix."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

VARIABLE: Final = "LOOM_CHAOS_LEDGER"  # where the file is

BEGUN, ENDED, ACCEPTED = "begun", "ended", "accepted"

NO_NAME: Final = "-"
MANY: Final = "*"  # in the name of what is several tasks to the server, or comes anew when its parent runs again

_NAME: Final = re.compile(rb"chaos:[a-z0-9.*-]+;")
"""How a task's name stands in its configuration: among a call's pickled arguments, or a program's arguments."""


def append(event: str, name: str, task: int, attempt: int, path: str | None = None) -> None:
    """`task` is the number in its session, 0 where it is not known, as for programs; so is `attempt`."""
    line = f"{event} {name} {task} {attempt} {os.getpid()}\n".encode()
    file = os.open(path or os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def name_in(config: bytes) -> str:
    """The name that a configuration carries, NO_NAME where there is none."""
    found = _NAME.search(config)
    return found[0].decode() if found else NO_NAME


@dataclass
class Ledger:
    """What was written. Runs are `(name, task, attempt)`."""

    begun: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    ended: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    accepted: Counter[tuple[str, int, int]] = field(default_factory=Counter)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        ledger = cls()
        counters = {BEGUN: ledger.begun, ENDED: ledger.ended, ACCEPTED: ledger.accepted}
        for line in path.read_text().splitlines() if path.exists() else ():
            event, name, task, attempt, _pid = line.split(" ")
            counters[event][name, int(task), int(attempt)] += 1
        return ledger

    def accepted_twice(self) -> list[str]:
        """One attempt of a task whose result was taken more than once."""
        return [f"{run[1]:#x} attempt {run[2]} {run[0]}" for run, n in self.accepted.items() if n > 1]

    def run_twice(self) -> list[str]:
        """One attempt of a task that was begun more than once."""
        begun = self.begun.items()
        return [f"{run[1]:#x} attempt {run[2]} {run[0]}" for run, n in begun if n > 1 and run[2] and MANY not in run[0]]

    def never_run(self) -> list[str]:
        """Accepted attempts that nobody has executed to the end."""
        return list(self._never_run())

    def _never_run(self) -> Iterator[str]:
        names = {name for name, _, _ in self.ended}
        runs = {(name, attempt) for name, _, attempt in self.ended if attempt}
        known = {name for name, _ in runs}
        for name, task, attempt in self.accepted:
            if name == NO_NAME:
                continue  # a built-in: it has no first act
            if name not in names or (name in known and (name, attempt) not in runs):
                yield f"{task:#x} attempt {attempt} {name}"

    def n_repeated(self) -> int:
        """Executions beyond the first of the same task."""
        return self.begun.total() - len({(name, task) for name, task, _ in self.begun})
