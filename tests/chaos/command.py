"""The command line: which seeds, which faults; a table, and what to repeat."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from chaos import record
from chaos.faults import FAULTS
from chaos.runner import Outcome, run_seed
from chaos.soak import soak

_SHOWN = 12  # lines of what was found in one category


def main(arguments: list[str]) -> int:
    """Returns 1 where a run found something."""
    given = _parser().parse_args(arguments)
    if given.list:
        for name, fault in FAULTS.items():
            missing = fault().missing()
            print(f"{name:26} {fault.about}{f'  [not here: {missing}]' if missing else ''}")
        return 0
    if given.table:
        print(record.table(given.table))
        return 0
    if given.only and (missing := FAULTS[given.only]().missing()):
        print(f"{given.only} cannot be injected here: it {missing}")
        return 1
    if given.soak is not None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        return soak(given.seed, given.soak, _say)
    for name, fault in FAULTS.items():
        if not given.only and (missing := fault().missing()):
            print(f"not chosen: {name} {missing}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is taken down
    failed = []
    print(_line(("seed", "fault", "s", "strikes", "tasks", "run", "again", "failed rightly", *_CATEGORIES)), flush=True)
    for seed in given.seeds or [given.seed]:
        outcome = run_seed(seed, given.only, given.scale, _say if given.verbose else _say_nothing)
        print(_line(_cells(outcome)), flush=True)
        if given.json:
            record.append(given.json, outcome)
        if outcome.findings.bad():
            failed.append(outcome)
            _tell(outcome, given.only)
    if len(failed) > 1:
        print(f"{len(failed)} runs found something: seeds {', '.join(str(one.seed) for one in failed)}")
    return int(bool(failed))


def _say(text: str) -> None:
    print(text, flush=True)


def _say_nothing(_text: str) -> None:
    pass


_CATEGORIES = ("lost", "wrong", "accepted twice", "not executed", "left over", "trouble")
_WIDTHS = (6, 26, 5, 7, 6, 6, 6, 14, *map(len, _CATEGORIES))


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))


def _cells(outcome: Outcome) -> tuple[str, ...]:
    found = outcome.findings
    numbers = (found.n_strikes, found.n_tasks, found.n_executions, found.n_repeated, found.n_failed_rightly)
    bad = (len(what) for what in found.categories().values())
    return str(outcome.seed), outcome.fault, f"{outcome.seconds:.0f}", *map(str, numbers), *map(str, bad)


def _tell(outcome: Outcome, only: str | None) -> None:
    for category, found in outcome.findings.bad().items():
        print(f"  {category}:")
        for line in found[:_SHOWN]:
            print("    " + line.replace("\n", "\n    "))
        if len(found) > _SHOWN:
            print(f"    and {len(found) - _SHOWN} more")
    chosen = f" --only {only}" if only else ""
    print(f"  logs: {outcome.directory}/log, what was done: {outcome.directory}/story")
    print(f"  again: python -m tests.chaos --seed {outcome.seed}{chosen} -v", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Real faults in real processes, and what is counted afterwards."
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, default=1, metavar="N", help="one run  [1]")
    which.add_argument("--seeds", type=_range, metavar="A-B", help="so many runs")
    parser.add_argument("--only", choices=list(FAULTS), metavar="FAULT", help="this fault, whatever the seed says")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="everything at random for so long, from one seed")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="multiply the work of each run  [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line for each run")
    parser.add_argument("--table", type=Path, metavar="FILE", help="sum up such a file by fault, and do nothing else")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is done when")
    return parser


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
