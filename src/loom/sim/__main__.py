"""Replay seeds: `python -m loom.sim --seed 17 -v`, or run many: `python -m loom.sim --seeds 0-999`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from loom.sim.runner import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loom.sim", description="Run the cores in a simulated cluster.")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", help="a range, both ends included: 0-999")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every event and effect")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        first = last = arguments.seed
    else:
        first, _, last = (arguments.seeds or "0-99").partition("-")
        first, last = int(first), int(last or first)
    failed = []
    for seed in range(first, last + 1):
        began_s = time.perf_counter()
        try:
            summary = run_seed(seed, print if arguments.verbose else None)
        except Exception:
            failed.append(seed)
            traceback.print_exc(limit=-4, file=sys.stdout)
            summary = "FAILED"
        print(f"seed {seed}: {summary}, {time.perf_counter() - began_s:.2f} s", flush=True)
    if failed:
        print(f"failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
