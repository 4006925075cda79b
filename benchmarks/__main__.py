"""`python -m benchmarks [W1 W2 ...]`: run workloads, print the table."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from benchmarks.bench import Options
from benchmarks.isolation import rows_of
from benchmarks.measuring import Row
from benchmarks.table import as_json, machine, table
from benchmarks.workloads import WORKLOADS


def main(arguments: list[str]) -> int:
    """Returns 1 where a workload failed; a target that is missed is no failure."""
    given = _parser().parse_args(arguments)
    options = Options(given.repeat, given.quick, given.embedded, given.scale)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is taken down
    facts = machine()
    rows: list[Row] = []
    for name in given.workloads or WORKLOADS:
        began = time.monotonic()
        rows += rows_of(name, options)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    print("\n" + ", ".join(f"{name}: {value}" for name, value in facts.items()))
    if given.json:
        report = {"machine": facts, "options": vars(given) | {"json": None}, "rows": [as_json(row) for row in rows]}
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    return int(any(row.error for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Loom beside stand-ins, in one run.")
    parser.add_argument(
        "workloads", nargs="*", metavar="WORKLOAD", type=_workload, help=f"of {', '.join(WORKLOADS)}  [default: all]"
    )
    parser.add_argument("--repeat", type=_positive, default=3, metavar="N", help="runs of each side  [default: 3]")
    parser.add_argument("--json", metavar="FILE", help="write every figure there")
    parser.add_argument("--quick", action="store_true", help="leave the largest sizes out")
    parser.add_argument("--embedded", action="store_true", help="Client(cpus=2) instead of a server and two workers")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="multiply all sizes, to try things out")
    return parser


def _workload(text: str) -> str:
    for name in WORKLOADS:
        if name.lower() == text.lower():
            return name
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(WORKLOADS)}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
