"""The server dies, alone or with others, and the same command starts it again from its journal."""

from __future__ import annotations

import math
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import ClassVar, Final

import psutil

from chaos.client import Spec
from chaos.cluster import Process, Setup, Trouble
from chaos.faults.fault import Fault, Run
from chaos.faults.hosts import MIB, DiskFull, fill, mount, unmount
from chaos.faults.storm import STRIKES, end_server, heal_links, prepare_storm, strike_once
from chaos.ledger import COMPACT
from loom.limits import REATTACH_S

_SMALL_JOURNAL: Final = 30_000  # bytes from which it is written anew, so that this happens


class ServerKills(Fault):
    name = "server-kills"
    about = "kill -9 of the server at random; the same command starts it again after 0 to 3 s"
    needs_journal = True
    most_repeated: ClassVar[int | None] = 5
    cost_s = 20.0
    least_s, most_s = 0.0, 3.0  # until it is started again

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.cost_s = self.cost_s

    def act(self, run: Run) -> None:
        for _ in range(run.rng.randint(3, 7)):
            if not run.between(0.2, 3):
                break
            run.cluster.kill_server()
            self.while_away(run)
            if run.rng.random() < 0.8:
                run.between(self.least_s, self.most_s)
            run.cluster.restart_server()

    def while_away(self, run: Run) -> None:
        """What else happens in the same moment."""


class ServerKillsLong(ServerKills):
    name = "server-kills-long"
    about = f"the same, but it is away for more than {REATTACH_S:g} s: workers go on with what they have"
    cost_s = 40.0
    least_s, most_s = REATTACH_S, REATTACH_S + 4


class ServerAndWorkerKilled(ServerKills):
    name = "server-and-worker-killed"
    about = "kill -9 of the server and of a worker in the same moment; another worker is started"
    most_repeated = None

    def while_away(self, run: Run) -> None:
        worker = run.some_worker()
        if worker is not None:
            run.cluster.kill(worker, run.rng.random())
        if run.rng.random() < 0.5:
            run.replace_dead()

    def heal(self, run: Run) -> None:
        run.replace_dead()


class WholeClusterKilled(ServerKills):
    name = "whole-cluster-killed"
    about = "kill -9 of the server and of all workers, all are started again"
    most_repeated = None

    def while_away(self, run: Run) -> None:
        for worker in run.cluster.living_workers():
            run.cluster.kill(worker, run.rng.random())
        run.replace_dead()


class ServerStopsAndWorkers(Fault):
    name = "rolling-restart-all"
    about = "server (SIGTERM, started again; workers come back) and each worker (SIGTERM, another one comes) in turn"
    needs_journal = True
    most_repeated = 5

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.cost_s = 20.0

    def act(self, run: Run) -> None:
        while run.between(0.5, 2):
            workers = run.cluster.living_workers()
            n_back = [_times_back(worker) for worker in workers]
            end_server(run)
            run.between(0, 1)
            run.cluster.restart_server()
            while any(_times_back(one) == n for one, n in zip(workers, n_back, strict=True)) and run.goes_on(0.05):
                pass
            for worker in workers:
                if not run.between(0.5, 2):
                    return
                run.cluster.terminate(worker)
                while worker.alive and run.goes_on(0.05):
                    pass
                run.replace_dead()
                run.cluster.await_workers()


def _times_back(worker: Process) -> int:
    return worker.log.read_text().count("the server is back")


class ServerFailpoints(Fault):
    name = "server-failpoints"
    about = "kill -9 of the server at each named place around a write of its journal and a send, in turn"
    needs_journal = True
    most_repeated = 5

    places = (
        "recorded",
        "send-to-client",
        "send-to-worker",
        "journal-before-write",
        "journal-half-written",
        "journal-before-sync",
        "journal-synced",
        "compact-before-rename",
        "compact-renamed",
    )

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.cost_s = 30.0
        setup.environment[COMPACT] = str(_SMALL_JOURNAL)

    def act(self, run: Run) -> None:
        end_server(run)
        places = list(self.places)
        run.rng.shuffle(places)
        for place in places:
            if place.startswith("compact"):
                self._start(run, f"{place}:1")
            else:
                self._start(run, f"{place}:{round(math.exp(run.rng.uniform(0, 6)))}")
            while run.cluster.server.alive:
                if not run.goes_on(0.05):
                    end_server(run)
                    run.cluster.restart_server()
                    return
            self._note_death(run)
        run.cluster.restart_server()

    @staticmethod
    def _start(run: Run, failpoint: str) -> None:
        run.cluster.start_server(failpoint)
        run.cluster.say(f"{run.cluster.server.name} is started, to be killed at {failpoint}")

    @staticmethod
    def _note_death(run: Run) -> None:
        server = run.cluster.server
        run.cluster.n_server_kills += 1
        run.cluster.strike(f"{server.name} has ended with status {server.popen.returncode}")
        if server.popen.returncode != -signal.SIGKILL:
            raise Trouble(f"{server.name}: {server.log.read_text()[-2000:]}")


class JournalKillsCompaction(ServerKills):
    name = "journal-kills-compaction"
    about = "kill -9 of the server, of the process that writes its journal anew, or of both, while that is done"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.cost_s, spec.n_small = 10.0, 3_000
        setup.environment[COMPACT] = str(_SMALL_JOURNAL)

    def act(self, run: Run) -> None:
        n_left = run.rng.randint(4, 8)
        while n_left and run.goes_on(0.02):
            compactors = run.cluster.compactors()
            if not compactors:
                continue
            n_left -= 1
            run.between(0, 0.4)
            if run.rng.random() < 0.3:
                for process in compactors:
                    run.cluster.strike(f"kill -9 of the compaction {process.pid}")
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            if run.rng.random() < 0.8:
                run.cluster.kill_server()
                run.between(0, 1)
                run.cluster.restart_server()


class JournalDiskFull(Fault):
    name = "journal-disk-full"
    about = "the journal is on a tmpfs of 16 MB that something else fills up, and that is freed again"
    needs_journal = True
    repeats = False

    _STALL: Final = "acknowledges nothing: the journal"
    _OVER: Final = "acknowledges what it is told again"

    def missing(self) -> str:
        return DiskFull().missing()

    def before(self, directory: Path) -> None:
        self._place = directory / "small"
        mount(self._place, 16 * MIB)

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.journal = self._place / "journal"
        spec.n_rounds, spec.cost_s = 6, 20.0

    def act(self, run: Run) -> None:
        filler = self._place / "filler"
        for _ in range(run.rng.randint(3, 6)):
            if not run.between(0.0, 2):
                break
            n_told = self._count(run, self._STALL)
            run.cluster.strike("the disk of the journal is full")
            fill(filler, 0)
            while self._count(run, self._STALL) == n_told and run.goes_on(0.05):
                pass
            run.between(0.5, 3)
            run.cluster.say("there is room again")
            filler.unlink()
            while self._count(run, self._OVER) < self._count(run, self._STALL) and run.goes_on(0.05):
                pass

    def heal(self, run: Run) -> None:
        (self._place / "filler").unlink(missing_ok=True)

    def trouble(self, run: Run) -> list[str]:
        told, over = self._count(run, self._STALL), self._count(run, self._OVER)
        if not told:
            return ["the client was not told that the disk is full"]
        return [f"the client was told {told} times that the disk is full, and {over} that it is not"] * (told != over)

    @staticmethod
    def _count(run: Run, text: str) -> int:
        return run.client.log.read_text().count(text)

    def after(self) -> None:
        unmount(self._place)


class ClientKilledNamed(Fault):
    name = "client-killed-named"
    about = "kill -9 of a client with a named session after its plan was acknowledged; another one collects by name"
    needs_journal = True
    most_repeated = 5

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.session = "chaos"
        spec.n_rounds = 1  # the other one makes the same plan, with the same values
        spec.shapes = [shape for shape in spec.shapes if shape != "dynamic"]
        self._with_server = rng.random() < 0.5

    def act(self, run: Run) -> None:
        cluster, first = run.cluster, run.client
        first.await_said("submitted", 60)
        run.between(0, 5)
        cluster.strike(f"kill -9 {first.name}")
        first.stopped = True
        first.popen.kill()
        first.popen.wait()
        if self._with_server:
            cluster.kill_server()
            time.sleep(run.rng.uniform(0, 2))
            cluster.restart_server()
        spec = replace(first.spec, name="second", prefix=first.spec.name, taken_up=True)
        run.client = cluster.add_client(spec)
        run.client.await_said("ready", 60)
        run.client.go_on()
        while run.goes_on(1):
            pass


class Everything(Fault):
    name = "everything"
    about = "all of that at random: server, workers, executors killed and stopped, links broken, flipped, stalled"
    needs_journal = True

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        prepare_storm(setup)
        spec.retries = 30
        spec.cost_s = 25.0
        spec.misbehaving = {"daemon": 2, "deadly_once": 4}

    def act(self, run: Run) -> None:
        left = 20
        while run.between(0.2, 2) and left:
            left -= 1
            strike_once(run, run.rng.choice(STRIKES))
        run.replace_dead()

    def heal(self, run: Run) -> None:
        heal_links(run)
