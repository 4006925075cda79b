"""What goes wrong: each class is one kind of fault, done to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import ClassVar, Final

import psutil

from chaos import network
from chaos.client import Spec
from chaos.cluster import ClientProcess, Cluster, Process, Setup
from proxy import BOTH, FROM_TARGET, TO_TARGET, Proxy

Waiter = Callable[[float], bool]


class Run:
    """A run as faults see it."""

    def __init__(self, cluster: Cluster, client: ClientProcess, rng: Random, wait: Waiter) -> None:
        self.cluster = cluster
        self.client = client
        self.rng = rng
        self._wait = wait

    def goes_on(self, seconds: float) -> bool:
        """Wait so long; False as soon as the client has all its results."""
        return self._wait(seconds)

    def between(self, least_s: float, most_s: float) -> bool:
        return self._wait(self.rng.uniform(least_s, most_s))

    def strikes(self, n: int, least_s: float, most_s: float) -> Iterator[Process]:
        """A worker at a time, `n` times at most, at random times, while the client works."""
        for _ in range(n):
            if not self.between(least_s, most_s):
                return
            worker = self.some_worker()
            if worker is not None:
                yield worker

    def some_worker(self) -> Process | None:
        workers = self.cluster.living_workers()
        return self.rng.choice(workers) if workers else None

    def replace_dead(self) -> None:
        """As whoever starts workers would do."""
        while len(self.cluster.living_workers()) < self.cluster.setup.n_workers:
            self.cluster.add_worker()


class Fault:
    """`missing` says why it cannot be done here. `prepare` changes how things are started and what the client does;
    `act` does harm until the client is through; `heal` puts right what would be in the way of what is left to check.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    repeats: ClassVar[bool] = True  # whether it is a reason to run a task again

    def missing(self) -> str:
        return ""

    def before(self, directory: Path) -> None:
        """First of all, before the run's processes are started."""

    def after(self) -> None:
        """Last of all, when they are gone."""

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        pass

    def act(self, run: Run) -> None:
        raise NotImplementedError

    def heal(self, run: Run) -> None:
        pass


class WorkerKills(Fault):
    name = "worker-kills"
    about = "kill -9 of workers, of their supervisors, or of both, at random; another one is started after a while"
    both: ClassVar[bool] = True  # whether worker and supervisor may be killed together

    def act(self, run: Run) -> None:
        kills = run.rng.randint(3, 8)
        while run.between(0.3, 2.5) and kills:
            if (worker := run.some_worker()) is not None:
                run.cluster.kill(worker, run.rng.uniform(0.0 if self.both else 0.2, 1.0))
                kills -= 1
            if not run.between(0, 1.5):
                break
            run.replace_dead()
        run.replace_dead()


class WorkerKillsManyTasks(WorkerKills):
    name = "worker-kills-10000"
    about = "the same over 10,000 small tasks"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.n_small, spec.cost_s = 10_000, 2.0


class AllWorkersKilled(Fault):
    name = "all-workers-killed"
    about = "kill -9 of all workers at once, others come later"

    def act(self, run: Run) -> None:
        for _ in range(run.rng.randint(1, 2)):
            if not run.between(1, 5):
                break
            for worker in run.cluster.living_workers():
                run.cluster.kill(worker, run.rng.random())
            run.between(0, 2)
            run.replace_dead()


class ExecutorDeaths(Fault):
    name = "executor-deaths"
    about = "tasks that segfault, abort, call os._exit, overflow the stack or kill themselves; some only the first time"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.misbehaving = {"deadly": 15, "deadly_once": 15}

    def act(self, run: Run) -> None:
        while run.goes_on(1):
            pass


class ExecutorKills(Fault):
    name = "executor-kills"
    about = "kill -9 of executors at random while tasks may be tried again"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.retries = 10

    def act(self, run: Run) -> None:
        while run.between(0.3, 2):
            executors = run.cluster.executors()
            if executors:
                victim = run.rng.choice(executors)
                run.cluster.strike(f"kill -9 executor {victim.pid}")
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue


class WorkerStops(Fault):
    name = "worker-stops"
    about = "SIGSTOP of a worker for less than the server's patience, then SIGCONT"
    repeats = False

    least_s, most_s = 0.2, 3.0

    def act(self, run: Run) -> None:
        for worker in run.strikes(8, 0.3, 2):
            inner = run.rng.random() < 0.3
            run.cluster.pause(worker, signal.SIGSTOP, inner)
            run.between(self.least_s, self.most_s)
            run.cluster.pause(worker, signal.SIGCONT, inner)


class WorkerSilent(WorkerStops):
    name = "worker-silent"
    about = "SIGSTOP of a worker for longer than --worker-timeout; it comes back after its tasks ran elsewhere"
    repeats = True

    least_s, most_s = 3.0, 6.0

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.server_options += ["--worker-timeout", "2"]
        spec.cost_s = 20.0


class ExecutorStops(Fault):
    name = "executor-stops"
    about = "SIGSTOP of an executor for a moment, then SIGCONT"
    repeats = False

    def act(self, run: Run) -> None:
        while run.between(0.2, 1.5):
            executors = run.cluster.executors()
            if executors:
                chosen = run.rng.choice(executors)
                run.cluster.strike(f"SIGSTOP to executor {chosen.pid}")
                with suppress(psutil.NoSuchProcess):
                    chosen.send_signal(signal.SIGSTOP)
                    run.between(0.2, 3)
                    chosen.send_signal(signal.SIGCONT)


class ServerStops(Fault):
    name = "server-stops"
    about = "SIGSTOP of the server for a moment, then SIGCONT"
    repeats = False

    def act(self, run: Run) -> None:
        while run.between(0.5, 3):
            run.cluster.pause(run.cluster.server, signal.SIGSTOP)
            run.goes_on(run.rng.uniform(0.2, 3))
            run.cluster.pause(run.cluster.server, signal.SIGCONT)


class ClientStops(Fault):
    name = "client-stops"
    about = "SIGSTOP of the client for a moment, then SIGCONT"
    repeats = False

    def act(self, run: Run) -> None:
        while run.between(0.3, 2):
            run.cluster.pause(run.client, signal.SIGSTOP)
            run.goes_on(run.rng.uniform(0.2, 4))
            run.cluster.pause(run.client, signal.SIGCONT)


class Partition(Fault):
    """Needs namespaces."""

    def missing(self) -> str:
        return network.missing()

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.network = True
        setup.server_options += ["--worker-timeout", "2"]
        spec.cost_s = 15.0

    def act(self, run: Run) -> None:
        for worker in run.strikes(6, 0.5, 3):
            self.part(run, worker)
            run.between(0.5, 6)
            self._join(run, worker)

    def part(self, run: Run, worker: Process) -> None:
        raise NotImplementedError

    @staticmethod
    def cut(run: Run, worker: Process, others: list[str], incoming: bool = True, outgoing: bool = True) -> None:
        assert run.cluster.network is not None
        ways = " and ".join(way for way, closed in (("from", incoming), ("to", outgoing)) if closed)
        run.cluster.strike(f"no packets {ways} {', '.join(others)} at {worker.node}")
        run.cluster.network.cut(worker.node, others, incoming, outgoing)

    @staticmethod
    def _join(run: Run, worker: Process) -> None:
        assert run.cluster.network is not None
        run.cluster.say(f"{worker.node} is joined again")
        run.cluster.network.heal(worker.node)


class PartitionFull(Partition):
    name = "partition-full"
    about = "a worker is cut off from everybody, both ways (nft in network namespaces), and joined again"

    def part(self, run: Run, worker: Process) -> None:
        assert run.cluster.network is not None
        self.cut(run, worker, [node for node in run.cluster.network.addresses if node != worker.node])


class PartitionOneWay(Partition):
    name = "partition-one-way"
    about = "packets from or to a worker vanish in one direction"

    def part(self, run: Run, worker: Process) -> None:
        incoming = run.rng.random() < 0.5
        self.cut(run, worker, ["server"], incoming, not incoming)


class PartitionWorkers(Partition):
    name = "partition-workers"
    about = "two workers cannot reach each other, the server reaches both"
    repeats = False

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        super().prepare(setup, spec, rng, directory)
        spec.shapes = ["large", "arrays", "tree", "stencil"]

    def part(self, run: Run, worker: Process) -> None:
        self.cut(run, worker, [other.node for other in run.cluster.workers if other is not worker])


class PartitionClient(Partition):
    name = "partition-client"
    about = "the client is cut off from everybody, both ways or one, and joined again"
    repeats = False

    def act(self, run: Run) -> None:
        assert run.cluster.network is not None
        others = [node for node in run.cluster.network.addresses if node != run.client.node]
        for _ in range(5):
            if not run.between(0.3, 2):
                break
            incoming, outgoing = run.rng.choice(((True, True), (True, False), (False, True)))
            self.cut(run, run.client, others, incoming, outgoing)
            run.between(0.5, 8)
            self._join(run, run.client)


class Proxied(Fault):
    """The link of each worker to the server goes through a proxy."""

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.proxied = True
        setup.server_options += ["--worker-timeout", "2"]
        spec.cost_s = 15.0

    def act(self, run: Run) -> None:
        for worker in run.strikes(8, 0.5, 3):
            if worker.proxy is not None:
                self.disturb(run, worker.name, worker.proxy)

    def disturb(self, run: Run, name: str, proxy: Proxy) -> None:
        raise NotImplementedError


class LinkSlow(Proxied):
    name = "link-slow"
    about = "what passes between a worker and the server is up to half a second late (proxy)"
    repeats = False

    def disturb(self, run: Run, name: str, proxy: Proxy) -> None:
        seconds = run.rng.uniform(0, 0.5)
        run.cluster.strike(f"{name}: {seconds:.2f} s late")
        proxy.delay(seconds)

    def heal(self, run: Run) -> None:
        for worker in run.cluster.living_workers():
            if worker.proxy is not None:
                worker.proxy.delay(0)


class LinkStalls(Proxied):
    name = "link-stalls"
    about = "nothing passes between a worker and the server for a while, one way or both; it stays open (proxy)"

    def disturb(self, run: Run, name: str, proxy: Proxy) -> None:
        directions = run.rng.choice(((TO_TARGET,), (FROM_TARGET,), BOTH))
        run.cluster.strike(f"{name}: stalled {' and '.join(directions)}")
        proxy.stall(*directions)
        run.between(0.2, 5)
        proxy.go_on()


class LinkBreaks(Proxied):
    name = "link-breaks"
    about = "the connection between a worker and the server is reset after any byte, or half-closed (proxy)"

    def disturb(self, run: Run, name: str, proxy: Proxy) -> None:
        direction = run.rng.choice((None, None, TO_TARGET, FROM_TARGET))
        run.cluster.strike(f"{name}: {'reset' if direction is None else f'half-closed {direction}'}")
        if direction is None:
            proxy.cut()
        else:
            proxy.half_close(direction)


class LinkFlips(Proxied):
    name = "link-flips"
    about = "a bit is flipped on the link between a worker and the server (proxy)"

    def disturb(self, run: Run, name: str, proxy: Proxy) -> None:
        direction, after = run.rng.choice(BOTH), run.rng.randrange(2_000)
        run.cluster.strike(f"{name}: a bit {direction} after {after} bytes")
        proxy.flip(direction, after)


class ClientLinkBreaks(Fault):
    name = "client-link-breaks"
    about = "the client's connection to the server is reset, half-closed, stalled, or a bit in it is flipped (proxy)"
    repeats = False

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.client_proxied = True

    def act(self, run: Run) -> None:
        proxy = run.client.proxy
        assert proxy is not None
        while run.between(0.1, 1.5):
            how = run.rng.choice(("reset", "half-close", "stall", "flip", "refuse"))
            direction = run.rng.choice(BOTH)
            run.cluster.strike(f"client: {how} {direction}")
            match how:
                case "reset":
                    proxy.cut()
                case "half-close":
                    proxy.half_close(direction)
                case "stall":
                    proxy.stall(direction)
                    run.between(0.1, 2)
                    proxy.go_on()
                case "flip":
                    proxy.flip(direction, run.rng.randrange(20_000))
                case "refuse":
                    proxy.refuse()
                    proxy.cut()
                    run.between(0.1, 3)
                    proxy.refuse(False)

    def heal(self, run: Run) -> None:
        if run.client.proxy is not None:
            run.client.proxy.flip(TO_TARGET, 1 << 40)
            run.client.proxy.flip(FROM_TARGET, 1 << 40)


class DiskFull(Fault):
    name = "disk-full"
    about = "the directory of the workers is a tmpfs of 150 MB that something else fills up, and that is freed again"

    _MIB: Final = 1 << 20

    def missing(self) -> str:
        return "" if os.geteuid() == 0 else "needs root"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.wdir = self._place / "wdir"
        if rng.random() < 0.7:
            setup.spill = self._place / "spill"
        spec.shapes = ["large", "large", "arrays", "tree"]
        spec.retries = 100
        spec.largest_bytes = 300_000  # all results together fit

    def before(self, directory: Path) -> None:
        self._place = directory / "small"
        _mount(self._place, 150 * self._MIB)

    def act(self, run: Run) -> None:
        filler = self._place / "filler"
        for _ in range(10):
            if not run.between(0.2, 1.5):
                break
            room = run.rng.choice((0, 0, self._MIB // 2, 4 * self._MIB))
            run.cluster.strike(f"the disk is full, but for {room} bytes")
            _fill(filler, room)
            run.between(0.5, 3)
            run.cluster.say("there is room again")
            filler.unlink()

    def after(self) -> None:
        _unmount(self._place)


def _mount(place: Path, size_bytes: int) -> None:
    place.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "chaos", str(place)), check=True)


def _unmount(place: Path) -> None:
    subprocess.run(("umount", "-l", str(place)), check=False)


def _fill(filler: Path, room_bytes: int) -> None:
    """Until nothing more fits, then less by `room_bytes`."""
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
        file.truncate(max(file.tell() - room_bytes, 0))


class OtherClients(Fault):
    """Further clients come, and are killed."""

    word: ClassVar[str]  # after which

    def act(self, run: Run) -> None:
        number = 0
        while run.between(0.2, 1.5):
            number += 1
            spec = run.client.spec
            name = f"other{number}"
            other = run.cluster.add_client(
                Spec(spec.host, spec.port, run.rng.randrange(1 << 30), name, spec.directory, 4.0, 6)
            )
            other.await_said("ready", 30)
            other.go_on()
            self.await_moment(run, other)
            run.cluster.strike(f"kill -9 {name}")
            other.stopped = True
            other.popen.kill()

    def await_moment(self, run: Run, other: ClientProcess) -> None:
        raise NotImplementedError


class ClientKilledSubmitting(OtherClients):
    name = "client-killed-submitting"
    about = "other clients are killed (-9) while they submit"
    repeats = False

    def await_moment(self, run: Run, other: ClientProcess) -> None:
        run.goes_on(run.rng.uniform(0, 0.3))


class ClientKilledGathering(OtherClients):
    name = "client-killed-gathering"
    about = "other clients are killed (-9) while they gather"
    repeats = False

    def await_moment(self, run: Run, other: ClientProcess) -> None:
        wanted = run.rng.uniform(0, 0.8)
        while other.alive and not other.said("delivered") and other.progress() < wanted and run.goes_on(0.05):
            pass


class Cancels(WorkerKills):
    name = "cancels"
    about = "the client cancels a third of its futures and releases others half-way, while workers are killed (-9)"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.cancel_share, spec.release_share = 0.3, 0.2


class OutOfMemory(Fault):
    name = "out-of-memory"
    about = "tasks that take three times the memory they asked for"
    repeats = False

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.misbehaving = {"glutton": 4}

    def act(self, run: Run) -> None:
        while run.goes_on(1):
            pass


class Daemons(Fault):
    name = "daemons"
    about = "programs that fork, start sessions of their own, ignore SIGTERM; some with a time limit that they exceed"
    repeats = False

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.misbehaving = {"daemon": 6, "daemon_failing": 4, "endless": 4}

    def act(self, run: Run) -> None:
        while run.goes_on(1):
            pass


class DaemonsAndKills(WorkerKills):
    name = "daemons-and-kills"
    about = "such programs while workers or supervisors are killed (-9), never both of one together"
    both = False

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.misbehaving = {"daemon": 10, "endless": 4}


class Poison(Fault):
    name = "poison"
    about = "a task that kills (-9) its worker each time it runs; dead workers are replaced"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.misbehaving = {"poison": rng.randint(1, 2)}

    def act(self, run: Run) -> None:
        while run.goes_on(0.5):
            run.cluster.note_pids()
            run.replace_dead()
        run.replace_dead()


class Clock(Fault):
    name = "clock"
    about = "the wall clock of all processes jumps an hour back and forth (libfaketime)"
    repeats = False

    _LIBRARIES: Final = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")

    def missing(self) -> str:
        return "" if self._library() else "needs libfaketime"

    def _library(self) -> str:
        return next((str(path) for name in self._LIBRARIES for path in Path("/").glob(name.lstrip("/"))), "")

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        self._file = directory / "clock"
        self._file.write_text("+0\n")
        setup.environment |= {
            "LD_PRELOAD": self._library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }
        setup.server_options += ["--worker-timeout", "3"]

    def act(self, run: Run) -> None:
        while run.between(0.5, 2):
            offset = run.rng.choice(("-1h", "+1h", "+0"))
            run.cluster.strike(f"the clock: {offset}")
            self._file.write_text(f"{offset}\n")


class RollingDrain(Fault):
    name = "rolling-restart"
    about = "every worker in turn is told to leave (SIGTERM), and another one is started"
    repeats = False

    def act(self, run: Run) -> None:
        while run.between(0.5, 2):
            worker = run.rng.choice(run.cluster.living_workers())
            self.end(run, worker)
            while worker.alive and run.goes_on(0.05):
                pass
            run.replace_dead()
            run.cluster.await_workers()

    def end(self, run: Run, worker: Process) -> None:
        run.cluster.terminate(worker)


class RollingKill(RollingDrain):
    name = "rolling-kill"
    about = "the same with kill -9"
    repeats = True

    def end(self, run: Run, worker: Process) -> None:
        run.cluster.kill(worker, run.rng.random())


class Storm(Fault):
    name = "storm"
    about = "kills, stops, drains and killed executors at random"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.n_workers = 3
        setup.server_options += ["--worker-timeout", "2"]
        spec.retries = 20
        spec.cost_s = 15.0
        spec.misbehaving = {"daemon": 3, "deadly_once": 5}

    def act(self, run: Run) -> None:
        left = 12
        while run.between(0.3, 2) and left:
            left -= 1
            worker = run.some_worker()
            if worker is None:
                run.replace_dead()
                continue
            match run.rng.choice(("kill", "drain", "stop", "executor")):
                case "kill":
                    run.cluster.kill(worker, run.rng.random())
                case "drain":
                    run.cluster.terminate(worker)
                case "stop":
                    run.cluster.pause(worker, signal.SIGSTOP)
                    run.between(0.2, 4)
                    run.cluster.pause(worker, signal.SIGCONT)
                case "executor":
                    for executor in run.cluster.executors()[:1]:
                        executor.kill()
            if run.rng.random() < 0.6:
                run.replace_dead()
        run.replace_dead()


FAULTS: Final[dict[str, type[Fault]]] = {
    fault.name: fault
    for fault in (
        WorkerKills,
        WorkerKillsManyTasks,
        AllWorkersKilled,
        ExecutorDeaths,
        ExecutorKills,
        WorkerStops,
        WorkerSilent,
        ExecutorStops,
        ServerStops,
        ClientStops,
        PartitionFull,
        PartitionOneWay,
        PartitionWorkers,
        PartitionClient,
        LinkSlow,
        LinkStalls,
        LinkBreaks,
        LinkFlips,
        ClientLinkBreaks,
        DiskFull,
        ClientKilledSubmitting,
        ClientKilledGathering,
        Cancels,
        OutOfMemory,
        Daemons,
        DaemonsAndKills,
        Poison,
        Clock,
        RollingDrain,
        RollingKill,
        Storm,
    )
}
