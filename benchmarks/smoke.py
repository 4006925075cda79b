"""A small run of most workloads in about a minute, beside stored ratios: what CI shows of speed.

All is measured in one process on one cluster, each beside a reference that runs in turn with it; what is stored and
compared is the ratio of the two, since times differ from machine to machine. Machines differ in these ratios too, so
nothing fails over one.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import alone, costs, graphs, metg, objects
from benchmarks.cluster import running
from benchmarks.measuring import Side, interleaved
from benchmarks.meter import Meter
from benchmarks.references import loopback_peer, memory_copy, xargs
from benchmarks.results import machine
from benchmarks.table import laid_out, number
from loom.client import Client, Task

STORED = Path(__file__).with_name("smoke.json")

_REPEAT = 3
_ROUND_TRIPS = 2_000
_OBJECT_BYTES = 64 << 20
_HEADER = ("", "what", "Loom", "reference", "ratio", "stored", "off by")


@dataclass(frozen=True)
class _Case:
    """`ratio` of Loom's seconds for `n` of them to the reference's for one."""

    name: str
    what: str
    run: Callable[[Meter], None]
    reference: Side
    n: int = 1
    seconds: Callable[[Meter], float] = lambda meter: meter.wall_s


def _cases(client: Client, round_trip: Side) -> Iterator[_Case]:
    """All but W9, which has processes of its own, in about the order of the table."""

    def plan(name: str, what: str, n: int, make: Callable[[], list[Task]]) -> _Case:
        return _Case(name, f"{what}, {n:,}", partial(graphs.submit, client, make), round_trip, n)

    yield plan("W1", "bag of Python tasks", 20_000, partial(graphs.bag, 20_000))
    yield plan("W1u", "uneven bag", 5_000, partial(graphs.uneven_bag, 5_000))
    yield plan("W2", "const, one merge", 20_000, partial(graphs.one_merge, 20_000))
    yield plan("W3", "chain of Python tasks", 1_000, partial(graphs.chain, 1_000))
    yield plan("W3n", "chain of light tasks", 5_000, partial(graphs.light_chain, 5_000))
    yield plan("W4", "tree of Python tasks", 8_191, partial(graphs.tree, 4_096))
    yield plan("W5", "stencil of Python tasks", 3_200, partial(graphs.python_stencil, 200))
    yield plan("W5n", "stencil of light tasks", 3_200, partial(graphs.light_stencil, 200))
    yield plan("W5b", "stencil of tasks of 0.1 ms", 3_200, partial(metg.busy_stencil, 200, 1e-4))
    programs = 400
    yield _Case(
        "W6",
        f"/bin/true, {programs}",
        partial(graphs.submit, client, partial(graphs.programs, programs)),
        Side("xargs", partial(xargs, "/bin/true", programs), lambda meter: meter.wall_s / programs),
        programs,
    )
    copy = Side("memory copy", partial(memory_copy, _OBJECT_BYTES, 1), lambda meter: meter.wall_s)
    mib = _OBJECT_BYTES >> 20
    yield _Case("W7", f"{mib} MiB to the other worker", partial(objects.hand_over, client, _OBJECT_BYTES, False), copy)
    yield _Case("W7g", f"{mib} MiB to the client", partial(objects.to_client, client, _OBJECT_BYTES), copy)
    gathered = costs.N_GATHERED * costs.GATHERS
    yield _Case("W10", f"gather of small results, {gathered:,}", partial(costs.gather, client, 8), round_trip, gathered)
    for n_workers in (2, 1_000):
        n = 20_000
        yield _Case(
            "WS" if n_workers == 2 else "WSk",
            f"server alone, {n_workers:,} workers, {n:,}",
            partial(alone.serve_bag, n, n_workers),
            round_trip,
            n,
            lambda meter: meter.parts["server"],
        )


def run_smoke(stored: Path, store: bool) -> int:
    """Print the table; 1 where something failed, whatever the ratios are."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    before: Mapping[str, float] = json.loads(stored.read_text())["ratios"] if stored.exists() else {}
    began = time.monotonic()
    ratios: dict[str, float] = {}
    lines: list[tuple[str, ...]] = [_HEADER]
    failed = False
    with ExitStack() as stack:
        peer = stack.enter_context(loopback_peer())
        cluster = stack.enter_context(running(embedded=False))
        round_trip = Side(
            "round trip", partial(peer.round_trips, _ROUND_TRIPS), lambda meter: meter.wall_s / _ROUND_TRIPS
        )
        start = _Case("W9", "Client() to the first result", partial(costs.first_result, costs.LOOM_SCRIPT), _pool())
        for case in [*_cases(cluster.client, round_trip), start]:
            try:
                line, ratio = _measure(case, before.get(case.name))
                ratios[case.name] = ratio
            except Exception as error:
                traceback.print_exc()
                failed = True
                line = (case.name, case.what, f"FAILED: {error}", "", "", "", "")
            lines.append(line)
    print("\n".join(laid_out(lines)))
    print(f"Medians of {_REPEAT}, {time.monotonic() - began:.0f} s in all. Ratios differ from machine to machine.")
    if store and not failed:
        stored.write_text(json.dumps({"machine": machine(), "ratios": ratios}, indent=1) + "\n")
    return int(failed)


def _pool() -> Side:
    return Side("pool", partial(costs.first_result, costs.POOL_SCRIPT), lambda meter: meter.wall_s)


def _measure(case: _Case, stored: float | None) -> tuple[tuple[str, ...], float]:
    loom = Side("loom", case.run, lambda meter: case.seconds(meter) / case.n)
    own, reference = interleaved((loom, case.reference), _REPEAT)
    ratio = median(a / b for a, b in zip(own.figures, reference.figures, strict=True))
    return (
        case.name,
        case.what,
        _time(own.median),
        f"{reference.name} {_time(reference.median)}",
        number(ratio),
        number(stored) if stored else "",
        f"x {ratio / stored:.2f}" if stored else "",
    ), ratio


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"
