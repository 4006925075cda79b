"""Real servers, workers and clients for tests, and the proof that nothing of them is left."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

from loom.client import Client

LEAVE_S = 15.0  # a process that was told to end
NEWS_S = 20.0  # anything that others have to notice first
SCRIPTS = Path(sys.executable).parent  # where the console scripts are

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout_s: float = NEWS_S, what: str = "") -> T:
    """What the condition gives as soon as that is true; an AssertionError after the time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what or condition}"
        time.sleep(0.005)
    return value


class Processes:
    """Processes that a test has started, with all that came of them."""

    def __init__(self) -> None:
        self._seen: dict[int, psutil.Process] = {}

    def watch(self, pid: int) -> None:
        """Remember a process and its descendants of now."""
        try:
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                self._seen[one.pid] = one
        except psutil.NoSuchProcess:
            pass

    def alive(self) -> list[psutil.Process]:
        return [one for one in self._seen.values() if _lives(one)]

    def assert_gone(self) -> None:
        eventually(lambda: not self.alive(), LEAVE_S, f"the end of {self.alive()}")

    def assert_no_shared_memory(self) -> None:
        """A worker's directory carries the number of its process."""
        left = [p.name for p in Path("/dev/shm").glob("loom-*") if any(f"-{pid}-" in p.name for pid in self._seen)]
        assert not left


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Worker(subprocess.Popen[bytes]):
    """A `loom-worker`: this process is its supervisor, the worker itself is below it."""

    def itself(self) -> psutil.Process:
        """The worker, once it was forked; then it is the supervisor's only child."""
        return eventually(lambda: psutil.Process(self.pid).children(), what="the worker below its supervisor")[0]

    def kill(self) -> None:
        """Kill the worker, of which its supervisor ends."""
        if self.poll() is None:
            found = psutil.Process(self.pid).children()
            if found:
                kill(found)
            else:
                self.kill_supervisor()

    def kill_supervisor(self) -> None:
        super().kill()


class Cluster:
    """A server and workers, started as users start them. Each worker has a directory of its own below `directory`."""

    host = "127.0.0.1"
    """Where the server is found."""

    def __init__(
        self,
        directory: Path,
        n_workers: int = 2,
        cpus: int = 1,
        port: int = 0,
        environment: dict[str, str] | None = None,
        server_options: Sequence[str] = (),
        worker_options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.environment = {**os.environ, **(environment or {})}
        self.worker_options = worker_options
        self.processes = Processes()
        self.workers: list[Worker] = []
        self._logs = 0
        self._worker_logs: list[Path] = []
        self._has_journal = "--journal" in server_options
        self.server, self.server_log = self.start("server", "-p", str(port), *server_options)
        try:
            self.port = listening_port(self.server, self.server_log)
            for _ in range(n_workers):
                self._start_worker(cpus)
            self._await_connections()
        except BaseException:
            for process in (self.server, *self.workers):
                process.kill()
                process.wait()
            raise

    def start(self, what: str, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        """A process of `loom-server` or `loom-worker`, and where its log is."""
        self._logs += 1
        log = self.directory / f"{what}-{self._logs}.log"
        with log.open("wb") as stream:
            command: list[str | Path] = [SCRIPTS / f"loom-{what}", *arguments]
            kind: type[subprocess.Popen[bytes]] = Worker if what == "worker" else subprocess.Popen
            process = kind(command, stdin=subprocess.DEVNULL, stderr=stream, env=self.environment)
        return process, log

    @property
    def wdir(self) -> Path:
        return self.directory / "wdir"

    def add_worker(self, cpus: int = 1) -> Worker:
        worker = self._start_worker(cpus)
        self._await_connections()
        return worker

    def _start_worker(self, cpus: int, *more_options: str) -> Worker:
        options = ("--cpus", str(cpus), "--wdir", str(self.wdir), *self.worker_options, *more_options)
        worker, log = self.start("worker", *options, self.host, str(self.port))
        assert isinstance(worker, Worker)
        self.workers.append(worker)
        self._worker_logs.append(log)
        return worker

    def _await_connections(self) -> None:
        """Until every worker has connected once: its signals are handled by then."""
        eventually(lambda: all("connected to" in log.read_text() for log in self._worker_logs), what="workers")

    def client(self) -> Client:
        """A client, once all the workers are there."""
        client = Client(self.host, self.port)
        self.await_workers(client)
        return client

    def await_workers(self, client: Client) -> None:
        living = sum(worker.poll() is None for worker in self.workers)
        eventually(lambda: client.get_stats()["n_workers"] == living, what=f"{living} workers")
        self.watch()

    def watch(self) -> None:
        for process in (self.server, *self.workers):
            self.processes.watch(process.pid)

    def log(self) -> str:
        """Everything that has been said by all."""
        return "".join(log.read_text(errors="replace") for log in sorted(self.directory.glob("*.log")))

    def stop(self) -> None:
        """End everything and check that it is gone."""
        self.watch()
        everybody = [p for p in (*self.workers, self.server) if p.poll() is None]
        for process in everybody:  # on SIGTERM workers would wait for a server with a journal, once it is gone
            at_once = self._has_journal and process is not self.server
            process.send_signal(signal.SIGINT if at_once else signal.SIGTERM)
        try:
            assert [process.wait(LEAVE_S) for process in everybody] == [0] * len(everybody), self.log()
        finally:
            for process in everybody:
                process.kill()
                process.wait()
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        self.processes.assert_gone()
        self.processes.assert_no_shared_memory()
        assert not list(self.wdir.glob("*"))
        assert "internal error" not in self.log()


def listening_port(server: subprocess.Popen[bytes], log: Path) -> int:
    """The port that a server says it listens on."""

    def said() -> re.Match[str] | None:
        assert server.poll() is None, log.read_text()
        return re.search(r"listening on \S+:(\d+)", log.read_text())

    return int(eventually(said)[1])


def children(role: str, of: int | None = None) -> list[psutil.Process]:
    """Living `server`, `worker` (not their supervisors) or `executors` processes of Loom below a process (this one)."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            named = any(argument.startswith("loom.") and argument.endswith(role) for argument in process.cmdline())
            if named and process.name() != "loom-supervisor":
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return [process for process in found if _lives(process)]


def assert_no_objects(client: Client) -> None:
    """Everything that this test's futures kept is given up."""
    gc.collect()
    eventually(lambda: client.get_stats()["n_data_objects"] == 0, 8, "the end of all data objects")


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)


def run_script(script: str, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A Python process of its own, its standard output in a pipe."""
    command: Sequence[str] = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )
