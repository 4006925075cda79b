"""One run: from a seed to findings."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from chaos import checker
from chaos.checker import Findings
from chaos.client import Spec
from chaos.cluster import Cluster, Setup, Trouble
from chaos.faults import FAULTS
from chaos.faults.fault import Fault, Run
from chaos.ledger import Ledger

_READY_S: Final = 30.0
_WARM_S: Final = 40.0
_DELIVERED_S: Final = 400.0  # a client gives up by itself as soon as nothing moves
_EMPTY_S: Final = 90.0
_JOURNAL_SHARE: Final = 0.4  # of the runs of which the fault does not need one


@dataclass
class Outcome:
    seed: int
    fault: str
    findings: Findings
    seconds: float
    directory: Path


def choose(seed: int, only: str | None) -> Fault:
    """The fault of a seed, of those that can be done here."""
    if only is not None:
        return FAULTS[only]()
    possible = [fault for fault in (kind() for kind in FAULTS.values()) if not fault.missing()]
    return Random(seed).choice(possible)


def run_seed(
    seed: int, only: str | None = None, scale: float = 1.0, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """The directory with the logs is kept where something was found. `scale` multiplies the work."""
    fault = choose(seed, only)
    rng = Random(f"{seed} {fault.name}")
    directory = Path(tempfile.mkdtemp(prefix="loom-chaos-"))
    began = time.monotonic()

    def tell(text: str) -> None:
        line = f"{time.monotonic() - began:7.2f} {text}"
        say(line)
        with (directory / "story").open("a") as story:
            story.write(line + "\n")

    findings = Findings()
    fault.before(directory)
    try:
        _run(fault, seed, rng, scale, directory, findings, tell)
    except Trouble as trouble:
        findings.trouble.append(str(trouble))
    finally:
        fault.after()
    if not findings.bad():
        shutil.rmtree(directory)
    return Outcome(seed, fault.name, findings, time.monotonic() - began, directory)


def _run(
    fault: Fault,
    seed: int,
    rng: Random,
    scale: float,
    directory: Path,
    findings: Findings,
    tell: Callable[[str], None],
) -> None:
    setup = Setup(cpus=rng.choice((1, 1, 2)))
    if fault.needs_journal or Random(f"{seed} journal").random() < _JOURNAL_SHARE:
        setup.journal = directory / "journal" / "journal"
        setup.journal.parent.mkdir()
    setup.links = Random(f"{seed} links").choice(("tls", "insecure"))  # through a proxy, Loom would encrypt all
    spec = Spec("", 0, rng.randrange(1 << 30), "client", str(directory / "remember"))
    fault.prepare(setup, spec, rng, directory)
    tell(f"with{'' if setup.journal else 'out'} a journal, links: {setup.links}")
    spec.cost_s *= scale
    spec.n_small = round(spec.n_small * scale)
    cluster = Cluster(directory, setup, tell)
    run: Run | None = None
    try:
        cluster.start()
        spec.host, spec.port = cluster.host, cluster.port
        _warm_up(cluster, spec)
        client = cluster.add_client(spec)
        client.await_said("ready", _READY_S)
        before = checker.descriptors(cluster)
        tell("begins")
        client.go_on()
        run = Run(cluster, client, rng)
        fault.act(run)
        tell("no more faults")
        fault.heal(run)
        cluster.await_workers()
        client = run.client
        client.await_said("delivered", _DELIVERED_S)
        tell("delivered")
        for other in cluster.clients:
            if other is not client:
                other.popen.kill()
        client.go_on()
        client.await_said("empty", _EMPTY_S)
        tell("empty")
        findings.left_over += checker.stored(cluster) + checker.more_descriptors(cluster, before)
        client.go_on()
        if client.popen.wait(_READY_S):
            findings.trouble.append(f"the client ended with status {client.popen.returncode}")
        tell("the end")
        findings.trouble += cluster.stop()
        findings.left_over += checker.left_after_end(cluster)
        findings.trouble += fault.trouble(run)
    finally:
        cluster.destroy()
        findings.n_strikes = cluster.n_strikes
        findings.n_server_kills = cluster.n_server_kills
        if run is not None:
            findings.add_report(run.client.name, run.client.report())
        most = fault.most_repeated * cluster.n_server_kills if fault.most_repeated is not None else None
        findings.add_ledger(Ledger.read(cluster.ledger), fault.repeats, most)
        findings.trouble += checker.logs_with_faults(cluster) + checker.journal_damage(cluster)


def _warm_up(cluster: Cluster, spec: Spec) -> None:
    """Everything has been used once before anything is counted."""
    warm = cluster.add_client(Spec(spec.host, spec.port, 1, "warm", spec.directory, 1.0, 1))
    for word in ("ready", "delivered", "empty"):
        warm.await_said(word, _WARM_S)
        warm.go_on()
    report = warm.report()
    if warm.popen.wait(_READY_S) or report.wrong or report.lost:
        raise Trouble(f"without any fault: {report.error or (report.wrong + report.lost)[0]}")
