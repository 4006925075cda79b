"""Server, workers and clients of a run, each a process that carries the run's mark in its environment.

The mark is inherited by whatever they start, in however many steps: what carries it after the end was left behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec
import psutil

from chaos import ledger
from chaos.client import Report, Spec
from chaos.network import Network
from loom.failpoints import VARIABLE as FAILPOINTS
from proxy import Proxy

_TESTS: Final = Path(__file__).resolve().parent.parent
_MARK: Final = "LOOM_CHAOS_RUN"
_START_S: Final = 40.0
_PAUSE_S: Final = 0.02
_LEAVE_S: Final = 40.0  # longer than a drain may take


class Trouble(Exception):
    """The run cannot go on: something did not start, or died that should not."""


@dataclass
class Setup:
    """How to start things; faults change it before the run. `prefixes` are commands in front, by role."""

    n_workers: int = 2
    cpus: int = 1
    server_options: list[str] = field(default_factory=list)
    worker_options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    network: bool = False  # everybody in a network namespace of its own
    proxied: bool = False  # each worker reaches the server through a proxy of its own
    client_proxied: bool = False  # the client does
    wdir: Path | None = None  # where the workers' directories are; below the run's directory unless given
    spill: Path | None = None
    links: str = ""  # "tls": all encrypted, "insecure": none, else as Loom chooses
    journal: Path | None = None  # the server's; without it a server that dies takes everything with it


@dataclass(eq=False)
class Process:
    """One that a run has started. `node` is its network namespace, empty where there are none."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    node: str = ""
    stopped: bool = False  # by us, or killed
    proxy: Proxy | None = None

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def tree(self) -> list[psutil.Process]:
        """It and all below it."""
        try:
            top = psutil.Process(self.popen.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal_all(self, number: signal.Signals) -> None:
        """Its process and what is below it that belongs to Loom: where a worker has a supervisor, both."""
        for process in self.tree():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


class Cluster:
    def __init__(self, directory: Path, setup: Setup, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.setup = setup
        self.say = say
        self.ledger = directory / "ledger"
        self.wdir = setup.wdir or directory / "wdir"
        self.places = [self.wdir, setup.spill or directory / "tmp"]  # where workers have directories
        self.workers: list[Process] = []
        self.clients: list[ClientProcess] = []
        self.pids: set[int] = set()  # of everything ever seen
        self.network = Network(f"loom{os.getpid()}") if setup.network else None
        self.n_strikes = 0
        self._n_workers = 0
        for name in ("tmp", "log", "remember"):
            (directory / name).mkdir()
        self.ledger.touch()
        self.mark = f"{_MARK}={directory}"
        path = os.pathsep.join([str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._environment = {
            **os.environ,
            _MARK: str(directory),
            ledger.VARIABLE: str(self.ledger),
            "LOOM_KEY_FILE": str(directory / "key"),
            "TMPDIR": str(directory / "tmp"),
            "PYTHONPATH": path,
            "PYTHONFAULTHANDLER": "1",
            **setup.environment,
        }
        self.host = self.network.add("server") if self.network else "127.0.0.1"
        self.port = 0
        self._link_options = [f"--{setup.links}"] if setup.links else []
        self.n_server_kills = 0
        self._n_servers = 0

    # -- Starting -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.start_server()
        self.await_server()
        for _ in range(self.setup.n_workers):
            self.add_worker()
        self.await_workers()

    def start_server(self, failpoints: str = "") -> None:
        """The first time on any port, later on the same; `failpoints`: where it is to be killed."""
        self._n_servers += 1
        options = ["--host", self.host, *self._link_options]
        if self.setup.journal is not None:
            options += ["--journal", str(self.setup.journal)]
        command = [sys.executable, "-m", "chaos.server", "-p", str(self.port), *options, *self.setup.server_options]
        name = "server" if self._n_servers == 1 else f"server{self._n_servers}"
        self.server = self._run(name, command, "server", {FAILPOINTS: failpoints} if failpoints else {})

    def await_server(self) -> None:
        self.port = int(self._await_line(self.server, r"listening on \S+:(\d+)")[1])

    def kill_server(self) -> None:
        self.n_server_kills += 1
        self.strike(f"kill -9 {self.server.name}")
        self.server.popen.kill()
        self.server.popen.wait()

    def restart_server(self) -> None:
        self.start_server()
        self.say(f"{self.server.name} is started")
        self.await_server()

    def add_worker(self) -> Process:
        self._n_workers += 1
        name = f"worker{self._n_workers}"
        node = name if self.network else ""
        if self.network:
            self.network.add(node)
        given = ["--cpus", str(self.setup.cpus), "--wdir", str(self.wdir), *self._link_options]
        given += self.setup.worker_options
        if self.setup.spill is not None:
            given += ["--spill-dir", str(self.setup.spill)]
        proxy = Proxy((self.host, self.port)) if self.setup.proxied else None
        port = self.port if proxy is None else proxy.port
        worker = self._run(name, [sys.executable, "-m", "chaos.worker", *given, self.host, str(port)], node)
        worker.proxy = proxy
        self.workers.append(worker)
        return worker

    def await_workers(self) -> None:
        """Until all that live have connected."""
        for worker in self.living_workers():
            self._await_line(worker, r"connected to")

    def add_client(self, spec: Spec) -> ClientProcess:
        node = spec.name if self.network else ""
        if self.network:
            self.network.add(node)
        proxy = Proxy((self.host, self.port)) if self.setup.client_proxied else None
        path = self.directory / f"{spec.name}.json"
        given = replace(spec, port=spec.port if proxy is None else proxy.port, links=self.setup.links)
        path.write_bytes(msgspec.json.encode(given))
        client = ClientProcess(self, spec, path, node)
        client.proxy = proxy
        self.clients.append(client)
        return client

    def _run(self, name: str, command: Sequence[str], node: str, environment: dict[str, str] | None = None) -> Process:
        log = self.directory / "log" / f"{name}.log"
        inside = self.network.enter(node) if self.network else []
        with log.open("wb") as stream:
            popen = subprocess.Popen(
                [*inside, *command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**self._environment, **(environment or {})},
                cwd=self.directory / "tmp",
            )
        return Process(name, popen, log, node)

    def _await_line(self, process: Process, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + _START_S
        while (found := re.search(pattern, process.log.read_text(errors="replace"))) is None:
            if not process.alive or time.monotonic() > deadline:
                raise Trouble(f"{process.name} does not start: {process.log.read_text(errors='replace')[-2000:]}")
            time.sleep(_PAUSE_S)
        return found

    # -- While it runs ------------------------------------------------------------------------------------------------

    def living_workers(self) -> list[Process]:
        return [worker for worker in self.workers if worker.alive and not worker.stopped]

    def strike(self, text: str) -> None:
        """Say what harm is done now, and count it."""
        self.n_strikes += 1
        self.say(text)

    def kill(self, worker: Process, chance: float = 0.5) -> None:
        """kill -9 of what does the work, mostly; of its supervisor, or of both, where chance is near 0."""
        self.note_pids()
        worker.stopped = True
        inner, outer = worker_process(worker), worker.popen.pid
        which = [inner] if chance > 0.3 else [outer] if chance > 0.15 else [outer, inner]
        self.strike(f"kill -9 {worker.name} ({', '.join(map(str, which))} of {outer}, {inner})")
        for pid in which:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def terminate(self, worker: Process) -> None:
        self.note_pids()
        worker.stopped = True
        self.strike(f"SIGTERM to {worker.name}")
        worker.popen.terminate()

    def pause(self, worker: Process, number: signal.Signals, inner: bool = False) -> None:
        """SIGSTOP or SIGCONT to all of a worker, executors too, or only to the process that talks to the server."""
        tell = self.strike if number == signal.SIGSTOP else self.say
        tell(f"{number.name} to {'the inner process of ' if inner else ''}{worker.name}")
        if inner:
            with suppress(ProcessLookupError):
                os.kill(worker_process(worker), number)
        else:
            worker.signal_all(number)

    def executors(self) -> list[psutil.Process]:
        found = []
        for worker in self.living_workers():
            for process in worker.tree()[1:]:
                try:
                    if "loom.executors" in process.cmdline():
                        found.append(process)
                except psutil.Error:
                    continue
        return found

    def compactors(self) -> list[psutil.Process]:
        """The processes that write the server's journal anew at this moment."""
        found = []
        for process in self.server.tree()[1:]:
            try:
                if "loom.journal.compact" in process.cmdline():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def note_pids(self) -> None:
        """Files in shared memory carry the number of a process: remember whose are ours."""
        self.pids.update(process.pid for process in self.marked())

    def marked(self) -> list[psutil.Process]:
        """Every process of this machine that carries the mark, zombies apart."""
        mark = self.mark.encode()
        found = []
        for pid in psutil.pids():
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if mark not in file.read().split(b"\0"):
                        continue
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.NoSuchProcess):
                continue
        return found

    # -- The end ------------------------------------------------------------------------------------------------------

    def stop(self) -> list[str]:
        """Ask everybody to leave; who did not do so in good order."""
        self.note_pids()
        bad = []
        for process in [*self.living_workers(), self.server]:
            if not process.alive:
                bad.append(f"{process.name} had ended with status {process.popen.returncode}")
                continue
            process.popen.terminate()
            try:
                status = process.popen.wait(_LEAVE_S)
                if status:
                    bad.append(f"{process.name} left with status {status}")
            except subprocess.TimeoutExpired:
                bad.append(f"{process.name} does not leave within {_LEAVE_S:g} s of SIGTERM")
        return bad

    def destroy(self) -> None:
        """Whatever is still there, however the run went."""
        for process in self.marked():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        for process in [*self.workers, *self.clients]:
            if process.proxy is not None:
                process.proxy.close()
        for one in [*self.workers, *self.clients, *([self.server] if hasattr(self, "server") else [])]:
            one.popen.wait()
        if self.network:
            self.network.remove()


def worker_process(worker: Process) -> int:
    """The process that talks to the server: under a supervisor it is not the one that was started."""
    for process in worker.tree()[1:]:
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(word == "chaos.worker" for word in words):
            return int(process.pid)
    return worker.popen.pid


class ClientProcess(Process):
    """A client at work; see `chaos.client` for what it says."""

    def __init__(self, cluster: Cluster, spec: Spec, path: Path, node: str) -> None:
        self.spec = spec
        log = cluster.directory / "log" / f"{spec.name}.log"
        self._said = cluster.directory / f"{spec.name}.said"
        inside = cluster.network.enter(node) if cluster.network else []
        with log.open("wb") as errors, self._said.open("wb") as said:
            popen = subprocess.Popen(
                [*inside, sys.executable, "-m", "chaos.client", str(path)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=errors,
                env=cluster._environment,
                cwd=cluster.directory / "tmp",
            )
        super().__init__(spec.name, popen, log, node)
        self.n_plans = 0  # that it is through with

    def said(self, word: str) -> bool:
        """In the present one of its plans."""
        return self._said.read_text().split("\n").count(word) > self.n_plans

    def progress(self) -> float:
        """Share of the results that are there; 0 until all is submitted."""
        if not self.said("submitted"):
            return 0.0
        last = [line.split() for line in self._said.read_text().splitlines() if line.startswith("progress ")]
        done, open_ = map(int, last[-1][1:]) if last else (0, 1)
        return done / max(done + open_, 1)

    def await_said(self, word: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.said(word):
            if not self.alive or time.monotonic() > deadline:
                raise Trouble(f"{self.name} has not said {word!r}: {self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(_PAUSE_S)

    def go_on(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(b"\n")
        self.popen.stdin.flush()

    def report(self) -> Report:
        path = Path(self.spec.directory) / f"{self.spec.name}.report"
        if not path.exists():
            return Report(error=f"no report: {self.log.read_text(errors='replace')[-3000:]}")
        return msgspec.json.decode(path.read_bytes(), type=Report)
