"""Drives peers: an adapter process for each run, in the peer's own environment, spoken to in lines of JSON.

To the adapter goes `{"do": "start"}`, `{"do": "run", "job": "bag", "arguments": {"n": 1000}}`, `{"do": "stop"}`; each
is answered by `{"seconds": 1.5}` or `{"error": "..."}`. `benchmarks/peers/` has the adapters.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from benchmarks.measuring import Side, progress
from benchmarks.meter import Meter, below
from benchmarks.peer_environments import interpreter

_ADAPTERS = Path(__file__).resolve().parent / "peers"
_ANSWER_S = 600.0
_STOP_S = 15.0  # Ray takes some 2 s
_KILL_S = 5.0
_TAIL_BYTES = 500  # of the log of an adapter that has died
_WARM_TASKS = 200  # that start workers, executors and links


class PeerFailed(Exception):
    """What a peer was asked to do failed, or its adapter died or was silent for too long."""


class Adapter:
    """One running adapter."""

    def __init__(self, peer: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._peer = peer
        self._process = process
        self._log = log
        self.lost = False
        """It has died, or did not answer: nothing more is to be said."""

    def processes(self) -> list[psutil.Process]:
        """All that run for this peer. An adapter adopts what its peer leaves without a parent."""
        return below([self._process.pid])

    def start(self) -> float:
        return self._ask({"do": "start"})

    def run(self, job: str, arguments: Mapping[str, object]) -> float:
        """Seconds that the job took."""
        return self._ask({"do": "run", "job": job, "arguments": arguments})

    def stop(self) -> None:
        self._ask({"do": "stop"}, _STOP_S)

    def _ask(self, order: Mapping[str, object], limit_s: float = _ANSWER_S) -> float:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # reading says what there is to be said
        answer = json.loads(self._line(limit_s))
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return float(answer["seconds"])

    def _line(self, limit_s: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        line = b""
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.lost = True
                    raise PeerFailed(f"{self._peer} did not answer within {limit_s:g} s")
                part = os.read(stdout.fileno(), 65536)
                if not part:
                    self.lost = True
                    said = self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
                    raise PeerFailed(f"the adapter of {self._peer} has died; its log ends with: {said}")
                line += part
        return line


@contextmanager
def adapter(peer: str, command: Sequence[str] | None = None) -> Iterator[Adapter]:
    """Start the adapter, and end it with all that it has started. `command`: another one than the peer's own."""
    python = str(interpreter(peer, progress)) if command is None else ""
    with tempfile.TemporaryDirectory(prefix="loom-benchmarks-", dir="/tmp") as directory:  # Ray's sockets: short paths
        log = Path(directory) / "log"
        environment = {**os.environ, "PYTHONPATH": str(_ADAPTERS), "TMPDIR": directory}
        environment["PATH"] = os.pathsep.join([os.path.dirname(python), environment.get("PATH", "")])
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command or [python, str(_ADAPTERS / f"with_{peer}.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=directory,
                env=environment,
                start_new_session=True,  # a Ctrl-C reaches the benchmark, which ends the peer in its order
            )
        running = Adapter(peer, process, log)
        try:
            yield running
        finally:
            _end(running, process)


def _end(running: Adapter, process: subprocess.Popen[bytes]) -> None:
    """Ask, then kill, with everything below."""
    started = running.processes()
    if not running.lost:
        with suppress(PeerFailed, ValueError):  # what does not stop is killed
            running.stop()
    started = [one for one in started if one.is_running()] + running.processes()
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(0 if running.lost else _KILL_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in started:
        with suppress(psutil.NoSuchProcess):
            one.kill()  # looks at the time of its start, so another process of that number is safe
    assert process.stdout is not None
    process.stdout.close()


@dataclass(frozen=True)
class Asked:
    """What peers run for a row. `sizes` by peer; one that is not there has no such thing, and its cell stays blank.

    `full` is how many tasks Loom runs: what is less is noted.
    """

    job: str
    sizes: Mapping[str, int]
    arguments: Callable[[int], dict[str, object]]
    figure: Callable[[int, Meter], float]
    n_tasks: Callable[[int], int] = lambda size: size
    full: int = 0
    warm: bool = True

    def sides(self, peers: Sequence[str], scale: float) -> list[Side]:
        sides = []
        for peer in peers:
            if peer in self.sizes:
                size = max(1, round(self.sizes[peer] * scale))
                n_tasks = self.n_tasks(size)
                noted = f"{n_tasks:,}" if n_tasks < self.full else ""
                run = partial(self._run, peer, size)
                sides.append(Side(peer, run, partial(self.figure, size), n_tasks, is_peer=True, size=noted))
        return sides

    def _run(self, peer: str, size: int, meter: Meter) -> None:
        """A cluster of its own for each run, so that no peer is there while another one is measured."""
        with adapter(peer) as running:
            running.start()
            if self.warm:
                running.run("bag", {"n": _WARM_TASKS})
            with meter.of(running.processes):
                seconds = running.run(self.job, self.arguments(size))
            meter.wall_s = seconds  # by the clock of the adapter: without the talk
