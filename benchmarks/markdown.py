"""A result as a Markdown table: peers as columns."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measuring import Measured, Row
from benchmarks.results import Report, disturbed
from benchmarks.table import number, target

_NAMES = {"dask": "Dask", "ray": "Ray", "parsl": "Parsl", "hyperqueue": "HyperQueue"}


def markdown(report: Report) -> str:
    """Medians; Loom's with the least and the most. A size in brackets: the peer ran that many."""
    peers = list(dict.fromkeys(peer.name for row in report.rows for peer in row.peers))
    header = ["", "workload", "Loom", "stand-in", "ratio", "target", "met", *[_NAMES.get(peer, peer) for peer in peers]]
    lines = [_line(header), _line(["---"] * len(header))]
    lines += [_line(_cells(row, peers)) for row in report.rows]
    remarks = [f"{row.workload}: {note}" for row in report.rows for note in row.notes]
    remarks += [f"{row.workload}: failed: {row.error}" for row in report.rows if row.error]
    remarks += [
        f"{row.workload}: {peer.name} failed: {peer.error}" for row in report.rows for peer in row.peers if peer.error
    ]
    if any(row.loom is not None and disturbed(row) for row in report.rows):
        remarks.append("*: other processes used part of the machine meanwhile")
    facts = report.machine
    gib = facts["memory_bytes"] / 2**30
    where = f"{facts['cpu']}, {facts['cores']} cores, {gib:.0f} GiB, {facts['system']}, Python {facts['python']}"
    lines += ["", *[f"- {_escaped(remark)}" for remark in remarks], f"- Machine: {where}; Loom {facts['loom']}"]
    return "\n".join(lines)


def _cells(row: Row, peers: Sequence[str]) -> list[str]:
    name = row.workload + (" *" if row.loom is not None and disturbed(row) else "")
    if row.loom is None:
        return [name, _escaped(row.what or "failed"), *[""] * (5 + len(peers))]
    of = {peer.name: peer for peer in row.peers}
    least, most = number(min(row.loom.figures)), number(max(row.loom.figures))
    return [
        name,
        _escaped(row.what),
        f"**{number(row.loom.median)}** {row.unit} ({least} - {most})",
        "; ".join(_figure(reference, with_name=True) for reference in row.references),
        number(row.ratio) if row.ratio is not None else "",
        target(row.target),
        row.verdict,
        *[_figure(of[peer]) if peer in of else "" for peer in peers],
    ]


def _figure(measured: Measured, with_name: bool = False) -> str:
    if not measured.figures:
        return "failed"
    size = f" [{measured.size}]" if measured.size else ""
    return number(measured.median) + size + (f" ({measured.name})" if with_name else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")
