"""Rows as text and as JSON, and the facts of the machine they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import psutil

import loom
from benchmarks.measuring import Measured, Row, Target

_QUIET_CORES = 0.1  # others using more than this disturb a run noticeably
_HEADER = ("", "workload", "Loom", "stand-in", "ratio", "target", "met", "CPU us/task")


def table(rows: Sequence[Row]) -> str:
    """Medians with the least and the most; a star where other processes took part of the machine meanwhile."""
    lines: list[tuple[str, ...]] = [_HEADER]
    for row in rows:
        lines += _cells(row)
    widths = [max(len(line[column]) for line in lines if len(line) > 2) for column in range(len(_HEADER))]
    text = [_laid_out(line, widths) for line in lines]
    text.insert(1, "-" * max(map(len, text)))
    if any(row.loom is not None and _disturbed(row) for row in rows):
        text.append(f"* other processes used more than {_QUIET_CORES:g} cores meanwhile: not a figure to rely on")
    return "\n".join(text)


def _laid_out(line: tuple[str, ...], widths: Sequence[int]) -> str:
    if len(line) == 2:  # a remark takes the whole width
        return f"{'':{widths[0]}}  {line[1]}"
    return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _cells(row: Row) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    if row.loom is not None:
        first = row.references[0] if row.references else None
        lines.append(
            (
                row.workload + ("*" if _disturbed(row) else ""),
                row.what,
                f"{_figures(row.loom)} {row.unit}",
                f"{first.name}: {_figures(first)}" if first else "",
                _number(row.ratio) if row.ratio is not None else "",
                _target(row.target),
                row.verdict,
                " / ".join(
                    _number(m.cpu_us_per_task) for m in (row.loom, first) if m and m.cpu_us_per_task is not None
                ),
            )
        )
        for other in row.references[1:]:
            ratio = _number(row.loom.median / other.median)
            lines.append(("", "", "", f"{other.name}: {_figures(other)}", ratio, "", "", ""))
    else:
        lines.append((row.workload, row.what, *[""] * (len(_HEADER) - 2)))
    lines += [("", f"  {note}") for note in row.notes]
    if row.error:
        lines += [("", f"  FAILED: {line}") for line in row.error.splitlines()]
    return lines


def _figures(measured: Measured) -> str:
    least, most = min(measured.figures), max(measured.figures)
    return f"{_number(measured.median)} ({_number(least)} - {_number(most)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _target(target: Target | None) -> str:
    if target is None:
        return ""
    sign = ">=" if target.sense == "at least" else "<="
    first = f" (first {target.first:g})" if target.first is not None else ""
    return f"{'ratio' if target.of == 'ratio' else 'Loom'} {sign} {target.bound:g}{first}"


def _disturbed(row: Row) -> bool:
    sides = [side for side in (row.loom, *row.references) if side is not None]
    return any(statistics.median(side.others_cores) > _QUIET_CORES for side in sides)


def as_json(row: Row) -> dict[str, object]:
    """Every figure of every run, and what the table makes of them."""
    return {
        **asdict(row),
        "ratio": row.ratio,
        "met": row.verdict,
        "disturbed": row.loom is not None and _disturbed(row),
    }


def machine() -> dict[str, object]:
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
