"""Run all tests: groups of them side by side, one for each core. Most of them wait more than they compute.

usage: python tools/run_tests.py [COMPILED]

Unit tests and the simulator run once more with the compiled cores where the directory COMPILED has them. What a group
says is printed when it has ended. The status is 0 where all have passed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Group(NamedTuple):
    name: str
    arguments: tuple[str, ...]
    compiled: str = ""


def groups(compiled: str) -> list[Group]:
    """The longest first."""
    found = [
        Group("integration", ("tests/integration",)),
        Group("deploy", ("tests/deploy",)),
        Group("conformance", ("tests/conformance",)),
        Group("unit, sim", ("tests/unit", "tests/sim")),
    ]
    if (Path(compiled) / "loom").is_dir():
        found.append(Group("unit, sim with compiled cores", ("tests/unit", "tests/sim"), compiled))
    listed = {argument for group in found for argument in group.arguments}
    # Those that a target of their own runs are left out: chaos, browser.
    left_out = {f"tests/{path.parent.name}" for path in ROOT.glob("tests/*/test_*.py")} - listed - {"tests/browser"}
    return found + ([Group("others", tuple(sorted(left_out)))] if left_out else [])


def run(group: Group) -> tuple[int, str]:
    environment = dict(os.environ)
    if group.compiled:
        environment["PYTHONPATH"] = os.path.abspath(group.compiled)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *group.arguments]
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, check=False, **kept)
    return done.returncode, done.stdout


def main(compiled: str = "") -> int:
    waiting = deque(groups(compiled))
    failed: list[str] = []
    printing = threading.Lock()

    def work() -> None:
        while True:
            try:
                group = waiting.popleft()
            except IndexError:
                return
            began = time.monotonic()
            status, said = run(group)
            with printing:
                verdict = "passed" if status == 0 else "FAILED"
                print(f"== {group.name}: {verdict} after {time.monotonic() - began:.0f} s\n{said}", flush=True)
                if status:
                    failed.append(group.name)

    threads = [threading.Thread(target=work) for _ in range(min(len(waiting), os.cpu_count() or 1))]
    began = time.monotonic()
    print(f"Running tests, {len(threads)} groups at a time: {', '.join(group.name for group in waiting)}", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome = f"FAILED: {', '.join(failed)}" if failed else "all passed"
    print(f"== {outcome}, {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
