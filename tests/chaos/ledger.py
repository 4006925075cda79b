"""The ledger: one line an event, appended in one write, so that lines of many processes do not mix."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from loom.ids import incarnation_of, run_number

VARIABLE: Final = "LOOM_CHAOS_LEDGER"  # where the file is
COMPACT: Final = "LOOM_CHAOS_COMPACT_BYTES"  # for servers: see `chaos.server`

BEGUN, ENDED, ACCEPTED = "begun", "ended", "accepted"
ADOPTED: Final = "adopted"  # accepted of a worker that came back with it
SERVER: Final = "server"  # one starts, of the incarnation that stands in place of the attempt
KNOWN: Final = "known"  # it has read in its journal that this attempt was accepted

NO_NAME: Final = "-"
MANY: Final = "*"  # in the name of what is several tasks to the server, or comes anew when its parent runs again

_NAME: Final = re.compile(rb"chaos:[a-z0-9.*-]+;")
"""How a task's name stands in its configuration: among a call's pickled arguments, or a program's arguments."""

Run = tuple[str, int, int]


def append(event: str, name: str, task: int, attempt: int, path: str | None = None) -> None:
    """`task` and `attempt` are whole numbers, 0 where they are not known, as for programs."""
    append_all([(event, name, task, attempt)], path)


def append_all(events: Iterable[tuple[str, str, int, int]], path: str | None = None) -> None:
    lines = [f"{event} {name} {task} {attempt} {os.getpid()}\n" for event, name, task, attempt in events]
    file = os.open(path or os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, "".join(lines).encode())
    finally:
        os.close(file)


def name_in(config: bytes) -> str:
    """The name that a configuration carries, NO_NAME where there is none."""
    found = _NAME.search(config)
    return found[0].decode() if found else NO_NAME


@dataclass
class Ledger:
    """What was written. Runs are `(name, task, attempt)`, with the server's incarnation in the attempt.

    `twice`: what was accepted although the server knew that it had been: from itself, or from its journal. What is
    adopted is not in it: a server takes only what it does not have, be it that the acceptance by an earlier server was
    not on disk yet, or that the object had been lost together with the worker that now is back.
    """

    begun: Counter[Run] = field(default_factory=Counter)
    ended: Counter[Run] = field(default_factory=Counter)
    accepted: Counter[Run] = field(default_factory=Counter)
    twice: list[Run] = field(default_factory=list)
    n_adopted: int = 0
    known_to: dict[int, set[tuple[int, int]]] = field(default_factory=dict)  # by incarnation: tasks, attempts

    @classmethod
    def read(cls, path: Path) -> Ledger:
        ledger = cls()
        there: set[tuple[int, int]] = set()  # accepted, as far as the server of that moment knows
        incarnation = 0
        for line in path.read_text().splitlines() if path.exists() else ():
            event, name, given_task, given_attempt, _pid = line.split(" ")
            task, attempt = int(given_task), int(given_attempt)
            run = name, task, attempt
            match event:
                case "begun":
                    ledger.begun[run] += 1
                case "ended":
                    ledger.ended[run] += 1
                case "server":
                    incarnation = attempt
                    there = set()
                    ledger.known_to[incarnation] = set()
                case "known":
                    there.add((task, attempt))
                    ledger.known_to[incarnation].add((task, attempt))
                case "accepted" | "adopted":
                    ledger.accepted[run] += 1
                    ledger.n_adopted += event == ADOPTED
                    if event == ACCEPTED and (task, attempt) in there:
                        ledger.twice.append(run)
                    there.add((task, attempt))
        return ledger

    def accepted_twice(self) -> list[str]:
        """One attempt of a task whose result was taken more than once."""
        return [_tell(run) for run in self.twice]

    def run_twice(self) -> list[str]:
        """One attempt of a task that was begun more than once."""
        begun = self.begun.items()
        return [_tell(run) for run, n in begun if n > 1 and run[2] and MANY not in run[0]]

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
                yield _tell((name, task, attempt))

    def n_repeated(self) -> int:
        """Executions beyond the first of the same task."""
        return self.begun.total() - len({(name, task) for name, task, _ in self.begun})

    def repeated_after_restarts(self) -> dict[str, int]:
        """Functions that were run again by a later server than the one before, by what had become of the run before.

        `finish lost`: it had ended, and that was not in the journal; `object lost`: that was there, so nobody had the
        object any more; `under way`: it had not ended.
        """
        attempts: dict[tuple[str, int], list[int]] = {}
        for name, task, attempt in self.begun:
            if attempt and MANY not in name:
                attempts.setdefault((name, task), []).append(attempt)
        found = {"under way": 0, "finish lost": 0, "object lost": 0}
        for (name, task), runs in attempts.items():
            runs.sort()
            for before, after in pairwise(runs):
                if incarnation_of(before) == incarnation_of(after):
                    continue
                known = self.known_to.get(incarnation_of(after), set())
                if (task, before) in known:
                    found["object lost"] += 1
                elif (name, task, before) in self.ended:
                    found["finish lost"] += 1
                else:
                    found["under way"] += 1
        return found


def _tell(run: Run) -> str:
    name, task, attempt = run
    of = f" of incarnation {incarnation_of(attempt)}" if incarnation_of(attempt) else ""
    return f"{task:#x} attempt {run_number(attempt)}{of} {name}"
