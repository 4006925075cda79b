"""The runs in a trace's directory: a server that begins anew is another run, with numbers of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from loom.errors import LoomError
from loom.lore import units
from loom.trace.reader import Trace, TraceFile

_ADVICE = "Give each run a directory of its own, then nothing is mixed"


@dataclass(slots=True)
class Run:
    """`begun_us`: the wall clock (since 1970) when the first of its files was opened."""

    begun_us: int
    files: list[TraceFile] = field(default_factory=list)


def runs_of(trace: Trace) -> list[Run]:
    """The newest last."""
    runs: dict[int, Run] = {}
    for file in trace.files:
        run = runs.setdefault(file.opened.incarnation, Run(file.opened.wall_us))
        run.begun_us = min(run.begun_us, file.opened.wall_us)
        run.files.append(file)
    return sorted(runs.values(), key=lambda run: run.begun_us)


def one_run(trace: Trace, number: int | None = None) -> Trace:
    """What belongs to one run, counted from 1, the oldest; without a number to the newest. Where there are others, a
    note says so. LoomError where there is no such run.
    """
    runs = runs_of(trace)
    if number is None:
        number = len(runs)
    if not 1 <= number <= len(runs):
        there = "only run 1" if len(runs) == 1 else f"runs 1 to {len(runs)}"
        raise LoomError(f"{trace.directory} has no run {number}: it holds {there}, the newest last")
    run = runs[number - 1]
    if len(runs) == 1:
        return trace
    others = {file.path for other in runs if other is not run for file in other.files}
    notes = [note for note in trace.notes if not any(note.startswith(f"{path}: ") for path in others)]
    n_others = len(runs) - 1
    age = "the newest" if number == len(runs) else f"begun {units.moment(run.begun_us)}"
    there = "There is 1 other run" if n_others == 1 else f"There are {n_others} other runs"
    notes.append(
        f"This is run {number} of {len(runs)}, {age}. {there} in the same directory: see one with --run N "
        f"(1 is the oldest), all together with --all-runs. {_ADVICE}"
    )
    return Trace(trace.directory, run.files, notes)


def all_runs(trace: Trace) -> Trace:
    """Everything, with a note where that is several runs."""
    n_runs = len(runs_of(trace))
    if n_runs < 2:
        return trace
    return Trace(trace.directory, trace.files, [*trace.notes, f"This shows {n_runs} runs together. {_ADVICE}"])
