"""The adapter's side of the talk. Runs under a peer's interpreter: it imports nothing but the standard library."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from collections.abc import Callable
from time import perf_counter
from typing import IO, Protocol

_PR_SET_CHILD_SUBREAPER = 36
N_WORKERS = 2


class Peer(Protocol):
    """What an adapter's class has; beside it a method for each job that the peer can do, which returns seconds.

    bag(n): tasks that do nothing and take a number. uneven(durations): tasks that use so many seconds of CPU time.
    chain(n). tree(n_leaves): binary. stencil(width, steps, seconds). external(n): /bin/true. transfer(size_bytes): from
    one worker to a task on another. gather(size_bytes): to the client.
    """

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def bag(self, n: int) -> float: ...


def main(make: Callable[[], Peer]) -> None:
    """Answer orders from stdin until it is closed. What the peer prints goes to stderr."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # so that all that runs is below this process
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(make, sys.stdin, answers)
    answers.flush()
    os._exit(0)  # some peers leave threads that would not end


def serve(make: Callable[[], Peer], orders: IO[str], answers: IO[str]) -> None:
    peer = make()
    running = False
    for line in iter(orders.readline, ""):
        order = json.loads(line)
        began = perf_counter()
        try:
            match order["do"]:
                case "start":
                    running = True
                    peer.start()
                    seconds = perf_counter() - began
                case "run" if order["job"] == "first":
                    running = True
                    peer.start()
                    peer.bag(1)
                    seconds = perf_counter() - began
                case "run":
                    seconds = getattr(peer, order["job"])(**order["arguments"])
                case "stop":
                    if running:
                        running = False
                        peer.stop()
                    seconds = perf_counter() - began
                case other:
                    raise ValueError(f"unknown order {other!r}")
            answer: dict[str, object] = {"seconds": seconds}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
