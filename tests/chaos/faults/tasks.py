"""Tasks that do harm themselves, see `chaos.misbehaving`."""

from __future__ import annotations

from pathlib import Path
from random import Random

from chaos.client import Spec
from chaos.cluster import Setup
from chaos.faults.fault import Fault, Run
from chaos.faults.workers import WorkerKills


class ExecutorDeaths(Fault):
    name = "executor-deaths"
    about = "tasks that segfault, abort, call os._exit, overflow the stack or kill themselves; some only the first time"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.misbehaving = {"deadly": 15, "deadly_once": 15}


class OutOfMemory(Fault):
    name = "out-of-memory"
    about = "tasks that take three times the memory they asked for"
    repeats = False

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.misbehaving = {"glutton": 4}


class Daemons(Fault):
    name = "daemons"
    about = "programs that fork, start sessions of their own, ignore SIGTERM; some with a time limit that they exceed"
    repeats = False

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        spec.misbehaving = {"daemon": 6, "daemon_failing": 4, "endless": 4}


class DaemonsAndKills(WorkerKills):
    name = "daemons-and-kills"
    about = "such programs while workers, supervisors, or both of one together are killed (-9)"

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
