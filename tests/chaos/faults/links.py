"""Networks: nothing passes, or too late, or damaged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random

from chaos import network
from chaos.client import Spec
from chaos.cluster import Process, Setup
from chaos.faults.fault import Fault, Run
from proxy import BOTH, FROM_TARGET, TO_TARGET, Proxy


class Partition(Fault):
    """Needs namespaces."""

    def missing(self) -> str:
        return network.missing()

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.network = True
        setup.server_options += ["--worker-timeout", "2"]
        spec.cost_s = 15.0

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


class PartitionOfWorker(Partition, ABC):
    def act(self, run: Run) -> None:
        for worker in run.strikes(6, 0.5, 3):
            self.part(run, worker)
            run.between(0.5, 6)
            self._join(run, worker)

    @abstractmethod
    def part(self, run: Run, worker: Process) -> None:
        """Cut some connections of this worker."""


class PartitionFull(PartitionOfWorker):
    name = "partition-full"
    about = "a worker is cut off from everybody, both ways (nft in network namespaces), and joined again"

    def part(self, run: Run, worker: Process) -> None:
        assert run.cluster.network is not None
        self.cut(run, worker, [node for node in run.cluster.network.addresses if node != worker.node])


class PartitionOneWay(PartitionOfWorker):
    name = "partition-one-way"
    about = "packets from or to a worker vanish in one direction"

    def part(self, run: Run, worker: Process) -> None:
        incoming = run.rng.random() < 0.5
        self.cut(run, worker, ["server"], incoming, not incoming)


class PartitionWorkers(PartitionOfWorker):
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


class Proxied(Fault, ABC):
    """The link of each worker to the server goes through a proxy."""

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.proxied = True
        setup.server_options += ["--worker-timeout", "2"]
        spec.cost_s = 15.0

    def act(self, run: Run) -> None:
        for worker in run.strikes(8, 0.5, 3):
            if worker.proxy is not None:
                self.disturb(run, worker.name, worker.proxy)

    @abstractmethod
    def disturb(self, run: Run, name: str, proxy: Proxy) -> None:
        """Do something to the link of this worker."""


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
