"""The Loom that is measured: one server and two workers of one core, or what `Client()` starts by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.references import N_WORKERS
from loom.client import Client
from loom.client.wait import wait_for_workers

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 20.0  # starting takes some 0.5 s; this is for a machine under heavy load
_LEAVE_S = 10.0
_PAUSE_S = 0.01
Links = Literal["", "tls", "insecure"]

_LISTENING = re.compile(r"listening on .*:(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Cluster:
    """`pids`: of the server, then of the workers; each may have processes below it."""

    client: Client
    pids: list[int]
    n_workers: int
    port: int

    @property
    def server_pid(self) -> int:
        return self.pids[0]


@contextmanager
def running(
    embedded: bool,
    host: str = "127.0.0.1",
    prefixes: Sequence[Sequence[str]] = ((),) * N_WORKERS,
    journal: str | None = None,
    links: Links = "",
) -> Iterator[Cluster]:
    """Start it, wait until all workers are there, and end all of it. `prefixes`: before the command of each worker.

    `journal`: the file in which the server writes one. `links`: whether they are to be encrypted, where that is not
    left to Loom.
    """
    with _embedded() if embedded else _scripts(host, prefixes, journal, links) as cluster:
        yield cluster


@contextmanager
def _embedded() -> Iterator[Cluster]:
    with Client(cpus=N_WORKERS) as client:
        children = psutil.Process().children()
        found = {role: [p.pid for p in children if f"loom.cli.{role}" in p.cmdline()] for role in ("server", "worker")}
        assert client._cluster is not None
        yield Cluster(client, [*found["server"][-1:], *found["worker"][-1:]], 1, client._cluster.port)


@contextmanager
def _scripts(host: str, prefixes: Sequence[Sequence[str]], journal: str | None, links: Links) -> Iterator[Cluster]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loom-benchmarks-")))
        log = directory / "server.log"
        own = [f"--{links}"] if links else []
        options = ["--host", host, *own]
        options += [] if journal is None else ["--journal", journal]
        server = stack.enter_context(_script(log, [], "server", "-p", "0", *options))
        port = _port(server, log)
        pids = [server.pid]
        for number, prefix in enumerate(prefixes):
            script = _script(directory / f"worker{number}.log", prefix, "worker", "--cpus", "1", *own, host, str(port))
            pids.append(stack.enter_context(script).pid)
        found = wait_for_workers(host, port, N_WORKERS, _START_S)
        if found < N_WORKERS:
            logs = "\n".join(path.read_text() for path in sorted(directory.iterdir()))
            raise RuntimeError(f"{found} of {N_WORKERS} workers after {_START_S:g} s. Their logs:\n{logs}")
        client = stack.enter_context(Client(host, port, tls=links == "tls", insecure=links == "insecure"))
        yield Cluster(client, pids, N_WORKERS, port)


@contextmanager
def _script(log: Path, prefix: Sequence[str], name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A script that ends when this block does, or with this process."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", f"loom.cli.{name}", "--until-stdin-closes", *arguments],
            stdin=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    """From the log, as soon as it is there."""
    deadline = time.monotonic() + _START_S
    while (found := _LISTENING.search(log.read_text())) is None:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server does not listen. Its log:\n{log.read_text()}")
        time.sleep(_PAUSE_S)
    return int(found[1])
