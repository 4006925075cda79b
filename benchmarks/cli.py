"""The command line: run, smoke, table, compare, plot, list."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench import Options
from benchmarks.compare import compared
from benchmarks.isolation import rows_of
from benchmarks.markdown import markdown
from benchmarks.measuring import Row, progress
from benchmarks.peer_environments import PINS, PeerUnavailable, interpreter
from benchmarks.results import Report, load, machine, merged, save
from benchmarks.smoke import STORED, run_smoke
from benchmarks.table import table
from benchmarks.workloads import WORKLOADS

_EXAMPLES = """
examples:
  python -m benchmarks run                              everything of Loom and the stand-ins
  python -m benchmarks run W1 W3 --repeat 5             some of it, more runs
  python -m benchmarks run W1 --peers dask,ray          beside other engines (installed for it, once)
  python -m benchmarks run --quick --json new.json      without the largest sizes; every run in a file
  python -m benchmarks compare old.json new.json        what has become worse
  python -m benchmarks table new.json                   the table as Markdown
  python -m benchmarks plot new.json --out docs/images  pictures (needs hyperloom[benchmarks])

benchmarks/README.md says how it is measured and what the rows mean.
"""


def main(arguments: list[str]) -> int:
    given = _parser().parse_args(arguments)
    return int(given.command(given))


def _run(given: argparse.Namespace) -> int:
    """Returns 1 where a workload or a peer failed; a target that is missed is no failure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is taken down
    facts = machine()
    failed = False
    peers = []
    for peer in given.peers:  # before anything is measured
        try:
            interpreter(peer, progress)
            peers.append(peer)
        except PeerUnavailable as error:
            failed = True
            print(f"{peer} is left out: {error}", file=sys.stderr)
    options = Options(given.repeat, given.quick, given.embedded, given.scale, tuple(peers))
    earlier = [load(given.json)] if given.add and given.json and given.json.exists() else []
    rows: list[Row] = []
    names = given.workloads or list(WORKLOADS)
    for number, name in enumerate(names, 1):
        began = time.monotonic()
        print(f"[{number}/{len(names)}] {name}: {WORKLOADS[name].what}", file=sys.stderr, flush=True)
        rows += rows_of(name, options)
        progress(f"{name} took {time.monotonic() - began:.0f} s")
        if given.json:  # after each, so that what is there stays if the next one never ends
            save(given.json, merged([*earlier, Report(facts, {**vars(options), "workloads": names}, rows)]))
    print(table(rows))
    print("\n" + ", ".join(f"{name}: {value}" for name, value in facts.items()))
    return int(failed or any(row.error or any(peer.error for peer in row.peers) for row in rows))


def _smoke(given: argparse.Namespace) -> int:
    return run_smoke(given.stored, given.store)


def _table(given: argparse.Namespace) -> int:
    report = merged([load(file) for file in given.files])
    report.rows.sort(key=_place)  # pieces come in any order
    print(markdown(report))
    return 0


def _place(row: Row) -> int:
    """Of the row's workload in the list of all. A row's name is that of its workload, with a letter or two behind."""
    names = list(WORKLOADS)
    return names.index(max((name for name in names if row.workload.startswith(name)), key=len))


def _compare(given: argparse.Namespace) -> int:
    print(compared(load(given.before), load(given.after)))
    return 0


def _plot(given: argparse.Namespace) -> int:
    try:
        from benchmarks.plot import plot
    except ImportError as error:
        print(f"{error}: pip install 'hyperloom[benchmarks]' brings what plots need", file=sys.stderr)
        return 1
    for path in plot(merged([load(file) for file in given.files]).rows, given.out, given.format):
        print(path)
    return 0


def _list(given: argparse.Namespace) -> int:
    for name, workload in WORKLOADS.items():
        print(f"{name:<7} {workload.what}")
    print(f"\npeers: {', '.join(f'{peer} ({chr(32).join(pins)})' for peer, pins in PINS.items())}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Loom beside stand-ins that every machine has, and beside other engines, in one run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands.add_parser("run", help="measure, and print the table"))

    smoke = commands.add_parser("smoke", help="a small run of most workloads, in about a minute, beside stored ratios")
    smoke.add_argument("--stored", type=Path, default=STORED, metavar="FILE", help="ratios to compare with")
    smoke.add_argument("--store", action="store_true", help="write the ratios of this run there")
    smoke.set_defaults(command=_smoke)

    table_ = commands.add_parser("table", help="print a result as a Markdown table")
    table_.add_argument("files", type=_result, nargs="+", metavar="FILE.json", help="of a later one its rows count")
    table_.set_defaults(command=_table)

    compare = commands.add_parser("compare", help="say what differs between two results beyond the noise")
    compare.add_argument("before", type=_result, metavar="BEFORE.json")
    compare.add_argument("after", type=_result, metavar="AFTER.json")
    compare.set_defaults(command=_compare)

    plot = commands.add_parser("plot", help="draw results (scaling, METG, throughput by size)")
    plot.add_argument("files", type=_result, nargs="+", metavar="FILE.json", help="of a later one its rows count")
    plot.add_argument("--out", type=Path, required=True, metavar="DIR")
    plot.add_argument("--format", choices=("svg", "png"), default="svg", help="[default: svg]")
    plot.set_defaults(command=_plot)

    commands.add_parser("list", help="say which workloads and peers there are").set_defaults(command=_list)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_run)
    parser.add_argument(
        "workloads", nargs="*", metavar="WORKLOAD", type=_workload, help=f"of {', '.join(WORKLOADS)}  [default: all]"
    )
    parser.add_argument(
        "--peers", type=_peers, default=(), metavar="NAMES", help=f"of {','.join(PINS)}, or all  [default: none]"
    )
    parser.add_argument("--repeat", type=_positive, default=3, metavar="N", help="runs of each side  [default: 3]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there, after each workload")
    parser.add_argument("--add", action="store_true", help="keep what else that file has: for runs in pieces")
    parser.add_argument("--quick", action="store_true", help="without the largest sizes, and a fifth for peers")
    parser.add_argument("--embedded", action="store_true", help="Client(cpus=2) instead of a server and two workers")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="multiply all sizes, to try things out")


def _workload(text: str) -> str:
    for name in WORKLOADS:
        if name.lower() == text.lower():
            return name
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(WORKLOADS)}")


def _peers(text: str) -> Sequence[str]:
    if text == "all":
        return tuple(PINS)
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PINS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PINS)}")
    return tuple(dict.fromkeys(names))


def _result(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}; `run --json FILE` writes one")
    return path


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number
