"""A file with a line for each run, and what its lines come to by fault."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from chaos.checker import Findings
from chaos.faults import FAULTS
from chaos.runner import Outcome

_HEADER = ("fault", "how", "runs", "strikes", "results", "executions", "of these again", "found")


def append(file: Path, outcome: Outcome) -> None:
    line = {"seed": outcome.seed, "fault": outcome.fault, "seconds": round(outcome.seconds, 1)}
    with file.open("a") as stream:
        stream.write(json.dumps({**line, **asdict(outcome.findings)}) + "\n")


def _read(file: Path) -> dict[str, list[Findings]]:
    names = {one.name for one in fields(Findings)}
    by_fault: dict[str, list[Findings]] = {}
    for line in file.read_text().splitlines():
        run = json.loads(line)
        findings = Findings(**{name: value for name, value in run.items() if name in names})
        by_fault.setdefault(run["fault"], []).append(findings)
    return by_fault


def table(file: Path) -> str:
    """In Markdown. `found`: in how many runs something was not as it has to be."""
    by_fault = _read(file)
    lines = [f"| {' | '.join(_HEADER)} |", f"|{'---|' * len(_HEADER)}"]
    for name, fault in FAULTS.items():
        runs = by_fault.get(name, [])
        if runs:
            sums = [sum(figures) for figures in zip(*map(_figures, runs), strict=True)]
            n_bad = sum(bool(run.bad()) for run in runs)
            cells = [f"`{name}`", fault.about, *(f"{n:,}" for n in (len(runs), *sums)), str(n_bad or "nothing")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(run: Findings) -> tuple[int, ...]:
    return run.n_strikes, run.n_results, run.n_executions, run.n_repeated
