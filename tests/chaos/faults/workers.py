"""Workers and executors are killed, stopped, told to leave."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import psutil

from chaos.client import Spec
from chaos.cluster import Process, Setup
from chaos.faults.fault import Fault, Run

_MOST_STRIKES: Final = 30  # a slow machine might never come to an end between two of them


class WorkerKills(Fault):
    name = "worker-kills"
    about = "kill -9 of workers, of their supervisors, or of both, at random; another one is started after a while"

    def act(self, run: Run) -> None:
        kills = run.rng.randint(3, 8)
        while run.between(0.3, 2.5) and kills:
            if (worker := run.some_worker()) is not None:
                run.cluster.kill(worker, run.rng.random())
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


class RollingDrain(Fault):
    name = "rolling-restart"
    about = "every worker in turn is told to leave (SIGTERM), and another one is started"
    repeats = False

    def act(self, run: Run) -> None:
        for _ in range(_MOST_STRIKES):
            if not run.between(0.5, 2):
                break
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
