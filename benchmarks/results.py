"""Results as files of JSON, and the facts of the machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import loom
from benchmarks.measuring import Measured, Row

QUIET_CORES = 0.1  # others using more than this disturb a run noticeably


@dataclass(frozen=True)
class Report:
    machine: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row]


def save(path: Path, report: Report) -> None:
    """Every figure of every run, and what the table makes of them."""
    rows = [_row_as_json(row) for row in report.rows]
    path.write_text(json.dumps({"machine": report.machine, "options": report.options, "rows": rows}, indent=1) + "\n")


def load(path: Path) -> Report:
    values = json.loads(path.read_text())
    return Report(values["machine"], values["options"], [Row.from_json(row) for row in values["rows"]])


def merged(reports: Sequence[Report]) -> Report:
    """One with the rows of all. Of rows that several have the last one counts, with the peers of all.

    What was not measured in one run is beside each other then, so it is for results of one machine and day.
    """
    rows: dict[tuple[str, str], Row] = {}
    for report in reports:
        for row in report.rows:
            known = rows.get((row.workload, row.what))
            here = {peer.name for peer in row.peers}
            peers = [peer for peer in known.peers if peer.name not in here] if known else []
            rows[row.workload, row.what] = replace(row, peers=[*peers, *row.peers])
    return Report(reports[-1].machine, reports[-1].options, list(rows.values()))


def _row_as_json(row: Row) -> dict[str, Any]:
    values = asdict(row)
    for side in [values["loom"], *values["references"], *values["peers"]]:
        if side and side["figures"]:
            side["median"] = statistics.median(side["figures"])
    return {**values, "ratio": row.ratio, "met": row.verdict, "disturbed": disturbed(row)}


def disturbed(row: Row) -> bool:
    """Whether other processes took part of the machine in the median run of one of its sides."""
    sides: list[Measured] = [side for side in (row.loom, *row.references) if side is not None and side.others_cores]
    return any(statistics.median(side.others_cores) > QUIET_CORES for side in sides)


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "loom": loom.__version__,
        "uvloop": _version("uvloop"),
        "load_average": os.getloadavg(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
