"""The server and clients are stopped or killed, or change their mind."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random

from chaos.client import Spec
from chaos.cluster import ClientProcess, Setup
from chaos.faults.fault import Fault, Run
from chaos.faults.workers import WorkerKills


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


class OtherClients(Fault, ABC):
    """Further clients come, and are killed."""

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

    @abstractmethod
    def await_moment(self, run: Run, other: ClientProcess) -> None:
        """Wait until this client is to be killed."""


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
