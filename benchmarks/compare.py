"""Two results beside each other: what differs beyond the noise."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measuring import Measured, Row
from benchmarks.results import Report
from benchmarks.table import laid_out, number, spread

_SLIGHT = 0.03  # a difference of medians that nobody needs to hear of
_HEADER = ("", "workload", "before", "after", "ratio", "stand-in", "verdict")


@dataclass(frozen=True)
class Difference:
    """`ratio`: median after over median before. `standin`: the same of the first stand-in; None without one.

    `verdict`: "worse" or "better" where the ranges of all runs do not even touch, "worse, as the machine" where the
    stand-in has moved alike, and nothing else.
    """

    ratio: float
    standin: float | None
    verdict: str


def difference(before: Row, after: Row) -> Difference:
    """Both rows have figures of Loom."""
    assert before.loom is not None
    assert after.loom is not None
    ratio = after.loom.median / before.loom.median
    standin = None
    if before.references and after.references:
        standin = after.references[0].median / before.references[0].median
    verdict = _verdict(before.loom, after.loom, after.less_is_better)
    if verdict and standin is not None and _touch(before.loom, after.loom, standin):
        verdict += ", as the machine"
    return Difference(ratio, standin, verdict)


def _verdict(before: Measured, after: Measured, less_is_better: bool) -> str:
    if _touch(before, after) or abs(after.median / before.median - 1) < _SLIGHT:
        return ""
    return "better" if (after.median < before.median) == less_is_better else "worse"


def _touch(before: Measured, after: Measured, factor: float = 1.0) -> bool:
    """Whether the ranges do, those of `before` multiplied by the factor."""
    low, high = sorted((min(before.figures) * factor, max(before.figures) * factor))
    return low <= max(after.figures) and min(after.figures) <= high


def compared(before: Report, after: Report) -> str:
    """A table, what is worse, and what is in one of the two only."""
    earlier = {(row.workload, row.what): row for row in before.rows if row.loom is not None}
    lines: list[tuple[str, ...]] = [_HEADER]
    worse, n_missing = [], len(earlier)
    for row in after.rows:
        other = earlier.get((row.workload, row.what))
        if row.loom is None or other is None or other.loom is None:
            lines.append((row.workload, row.what, "", "failed" if row.error else "", "", "", "nothing to compare with"))
            continue
        n_missing -= 1
        found = difference(other, row)
        if found.verdict == "worse":
            worse.append(f"{row.workload} ({row.what}) x {found.ratio:.2f}")
        lines.append(
            (
                row.workload,
                row.what,
                spread(other.loom),
                f"{spread(row.loom)} {row.unit}",
                number(found.ratio),
                number(found.standin) if found.standin is not None else "",
                found.verdict,
            )
        )
    text = laid_out(lines)
    for name in ("cpu", "cores", "python"):
        if before.machine.get(name) != after.machine.get(name):
            text.append(f"Not the same {name}: {before.machine.get(name)} before, {after.machine.get(name)} after")
    if n_missing:
        text.append(f"{n_missing} rows of the first are not in the second")
    text.append(f"Worse beyond the noise: {'; '.join(worse)}" if worse else "Nothing is worse beyond the noise")
    return "\n".join(text)
