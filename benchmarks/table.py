"""Rows as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measuring import Measured, Row, Target
from benchmarks.results import QUIET_CORES, disturbed

_HEADER = ("", "workload", "Loom", "beside", "ratio", "target", "met", "CPU us/task")


def table(rows: Sequence[Row]) -> str:
    """Medians with the least and the most; a star where other processes took part of the machine meanwhile."""
    lines: list[tuple[str, ...]] = [_HEADER]
    for row in rows:
        lines += _cells(row)
    text = laid_out(lines)
    if any(row.loom is not None and disturbed(row) for row in rows):
        text.append(f"* other processes used more than {QUIET_CORES:g} cores meanwhile: not a figure to rely on")
    return "\n".join(text)


def laid_out(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns under the first line, which is the header; a line of two cells has a remark over the whole width."""
    n_columns = len(lines[0])
    widths = [max(len(line[column]) for line in lines if len(line) == n_columns) for column in range(n_columns)]
    text = [
        f"{'':{widths[0]}}  {line[1]}"
        if len(line) == 2
        else "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * max(map(len, text)))
    return text


def _cells(row: Row) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    if row.loom is not None:
        beside = [*row.references, *row.peers]
        first = beside[0] if beside and not beside[0].error else None
        lines.append(
            (
                row.workload + ("*" if disturbed(row) else ""),
                row.what,
                f"{spread(row.loom)} {row.unit}",
                *(_beside(row.loom, beside[0]) if beside else ("", "")),
                target(row.target),
                row.verdict,
                " / ".join(number(m.cpu_us_per_task) for m in (row.loom, first) if m and m.cpu_us_per_task is not None),
            )
        )
        for other in beside[1:]:
            cpu = number(other.cpu_us_per_task) if other.cpu_us_per_task is not None else ""
            lines.append(("", "", "", *_beside(row.loom, other), "", "", cpu))
    else:
        lines.append((row.workload, row.what, *[""] * (len(_HEADER) - 2)))
    lines += [("", f"  {note}") for note in row.notes]
    lines += [("", f"  {peer.name} FAILED: {line}") for peer in row.peers for line in peer.error.splitlines()]
    lines += [("", f"  FAILED: {line}") for line in row.error.splitlines()]
    return lines


def _beside(loom: Measured, other: Measured) -> tuple[str, str]:
    if not other.figures:
        return f"{other.name}: failed", ""
    size = f" [{other.size}]" if other.size else ""
    return f"{other.name}{size}: {spread(other)}", number(loom.median / other.median)


def spread(measured: Measured) -> str:
    least, most = min(measured.figures), max(measured.figures)
    return f"{number(measured.median)} ({number(least)} - {number(most)})"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def target(target: Target | None) -> str:
    if target is None:
        return ""
    sign = ">=" if target.sense == "at least" else "<="
    first = f" (first {target.first:g})" if target.first is not None else ""
    bound = f"{target.bound:,.0f}" if target.bound >= 1000 else f"{target.bound:g}"
    return f"{'ratio' if target.of == 'ratio' else 'Loom'} {sign} {bound}{first}"
