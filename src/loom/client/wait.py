"""`python -m loom.client.wait SERVER PORT N_WORKERS TIMEOUT`: wait until N workers are there."""

from __future__ import annotations

import sys
import time
from typing import Final

from loom.client.client import Client
from loom.errors import KeyRefused, LoomException, VersionMismatch

_PAUSE_S: Final = 0.1
_USAGE: Final = "usage: python -m loom.client.wait SERVER PORT N_WORKERS TIMEOUT_S"


def wait_for_workers(address: str, port: int, n_workers: int, timeout_s: float) -> int:
    """Return the number of workers as soon as it is at least `n_workers`, or after `timeout_s`. Waits for the server
    too.
    """
    deadline = time.monotonic() + timeout_s
    found = 0
    while True:
        try:
            with Client(address, port, connect_timeout_s=max(0.1, deadline - time.monotonic())) as client:
                while (found := client.get_stats()["n_workers"]) < n_workers and time.monotonic() < deadline:
                    time.sleep(_PAUSE_S)
                return found
        except (KeyRefused, VersionMismatch):
            raise
        except LoomException:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_S)


def main(arguments: list[str]) -> int:
    if arguments in (["-h"], ["--help"]):
        print(f"{_USAGE}\n\nWait until that many workers are connected to the server, and for the server itself.")
        return 0
    try:
        address, port, n_workers, timeout_s = arguments[0], int(arguments[1]), int(arguments[2]), float(arguments[3])
    except (IndexError, ValueError):
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        found = wait_for_workers(address, port, n_workers, timeout_s)
    except LoomException as error:
        print(f"loom: {error}", file=sys.stderr)
        return 1
    if found < n_workers:
        print(f"loom: {found} of {n_workers} workers were there after {timeout_s:g} s", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
