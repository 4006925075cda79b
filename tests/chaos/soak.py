"""Everything at random for a long time: one cluster, clients that come and go, all faults, the simulator in between.

It goes in rounds. In each, clients work while some kinds of faults strike; then all is put right, every client has to
have what it asked for, and nothing may be left. At these quiet points memory and descriptors of long-lived processes
are noted: what the last third of the rounds shows may not be much above the first.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import psutil

from chaos import checker
from chaos.checker import Findings
from chaos.client import Spec
from chaos.cluster import ClientProcess, Cluster, Setup, Trouble, worker_process
from chaos.faults import storm
from chaos.faults.fault import Run
from chaos.ledger import COMPACT, Ledger
from chaos.visitors import KINDS, Visitor

_ROUND_S: Final = 30.0  # of faults
_READY_S: Final = 60.0
_DELIVERED_S: Final = 200.0
_EMPTY_S: Final = 120.0
_SEEDS: Final = 25  # of the simulator after each round
_WARM_ROUNDS: Final = 2  # of which the figures do not count
_COMPACT_BYTES: Final = 300_000
_MOST_GROWTH: Final = 1.15
_MOST_MORE: Final = {"MB": 12.0, "descriptors": 12.0}
_OF_SERVER: Final = (storm.kill_server, storm.stop_server, storm.kill_server_and_worker, storm.kill_all)

Say = Callable[[str], None]
Figures = dict[str, float]


class _Crowd(Run):
    """A round: it goes on as long as any of its clients works. The first worker is never killed, only disturbed."""

    def __init__(self, cluster: Cluster, steady: ClientProcess, rng: Random) -> None:
        super().__init__(cluster, steady, rng)
        self.spared = cluster.workers[:1]
        self.visitors: list[Visitor] = []
        self._steady = steady
        self.until_s = time.monotonic() + _ROUND_S

    def works(self) -> bool:
        for visitor in self.visitors:
            visitor.tend()
        if time.monotonic() > self.until_s:
            return False
        return not self._steady.said("delivered") or not all(visitor.is_through() for visitor in self.visitors)

    def choose_client(self) -> None:
        """Whose link or process the next fault at a client concerns."""
        working = [visitor.client for visitor in self.visitors if visitor.client.alive]
        self.client = self.rng.choice([self._steady, *working])


class Soak:
    """`run` returns whether anything was found. The directory with the logs is kept then."""

    def __init__(self, seed: int, minutes: float, say: Say) -> None:
        self._seed = seed
        self._minutes = minutes
        self._say = say
        self._began_s = time.monotonic()
        self._directory = Path(tempfile.mkdtemp(prefix="loom-soak-"))
        self._strikes: Counter[str] = Counter()
        self._rounds: list[Figures] = []
        self._n_simulated = 0
        self._found: list[str] = []
        self._total = Findings()
        setup = Setup(environment={COMPACT: str(_COMPACT_BYTES)}, links="tls" if seed % 2 else "insecure")
        storm.prepare_storm(setup)
        setup.journal = self._directory / "journal" / "journal"
        setup.journal.parent.mkdir()
        self._cluster = Cluster(self._directory, setup, self._tell)
        self._steady: ClientProcess | None = None

    def run(self) -> bool:
        cluster, number = self._cluster, 0
        try:
            cluster.start()
            self._steady = cluster.add_client(self._spec("steady", self._seed, again=True))
            while time.monotonic() - self._began_s < 60 * self._minutes:
                number += 1
                self._round(number)
            self._end()
        except Trouble as trouble:
            self._note(number, "trouble", str(trouble))
        finally:
            cluster.destroy()
        for line in checker.logs_with_faults(cluster) + checker.journal_damage(cluster) + self._growth():
            self._note(number, "trouble", line)
        self._sum_up()
        if not self._found:
            shutil.rmtree(self._directory)
        return bool(self._found)

    def _spec(self, name: str, seed: int, **rest: bool | str) -> Spec:
        cluster = self._cluster
        given = {"cost_s": 8.0, "n_rounds": 2, "retries": 50, "largest_bytes": 5_000_000, **rest}
        return Spec(cluster.host, cluster.port, seed, name, str(self._directory / "remember"), **given)  # type: ignore[arg-type]

    # -- A round ------------------------------------------------------------------------------------------------------

    def _round(self, number: int) -> None:
        rng = Random(f"{self._seed} {number}")
        assert self._steady is not None
        crowd = _Crowd(self._cluster, self._steady, rng)
        self._steady.await_said("ready", _READY_S)
        self._steady.go_on()
        for i in range(rng.randint(1, 3)):
            kind = rng.choice(KINDS)
            spec = self._spec(f"round{number}-{i}", rng.randrange(1 << 30))
            crowd.visitors.append(Visitor(self._cluster, kind, spec, rng))
        struck = self._strike(crowd, rng)
        self._put_right(crowd)
        findings = self._quieten(crowd)
        self._sample()
        first = 1_000_000 + self._seed * 10_000 + number * _SEEDS
        self._simulate(number, first)
        for category, lines in findings.bad().items():
            for line in lines:
                self._note(number, category, line)
        self._add(findings)
        kinds = ", ".join(f"{name} {n}" for name, n in struck.items())
        clients = ", ".join(visitor.kind for visitor in crowd.visitors)
        figures = ", ".join(f"{name} {value:.0f}" for name, value in self._rounds[-1].items())
        self._say(
            f"{self._minute():6.1f} min, round {number}: {clients}; {kinds}; {findings.n_results} results, "
            f"{findings.n_executions} executions, {findings.n_repeated} of them again; {figures}; "
            f"found {'nothing' if not findings.bad() else findings.bad()}"
        )

    def _strike(self, crowd: _Crowd, rng: Random) -> Counter[str]:
        """Of some kinds of faults only: with all of them at once few situations last long enough to matter."""
        chosen = [strike for strike in dict.fromkeys(storm.STRIKES) if rng.random() < 0.5]
        if rng.random() < 0.4:  # servers are to grow old, too
            chosen = [strike for strike in chosen if strike not in _OF_SERVER]
        struck: Counter[str] = Counter()
        while crowd.between(0.3, 3) and chosen:
            strike = rng.choice(chosen)
            crowd.choose_client()
            storm.strike_once(crowd, strike)
            struck[strike.__name__] += 1
        self._strikes += struck
        return struck

    def _put_right(self, crowd: _Crowd) -> None:
        storm.heal_links(crowd)
        crowd.replace_dead()
        self._cluster.await_workers()

    def _quieten(self, crowd: _Crowd) -> Findings:
        """Until everybody has everything, and has given it up."""
        steady, findings = crowd._steady, Findings()
        steady.await_said("delivered", _DELIVERED_S)
        for visitor in crowd.visitors:
            visitor.finish(_DELIVERED_S)
        there = [steady, *(visitor.client for visitor in crowd.visitors if not visitor.was_killed)]
        for client in there:
            client.go_on()
        for client in there:
            client.await_said("empty", _EMPTY_S)
            findings.add_report(client.name, client.report())
            client.go_on()
            client.n_plans += 1
            if client is not steady:
                if client.popen.wait(_READY_S):
                    findings.trouble.append(f"{client.name} ended with status {client.popen.returncode}")
                if client.proxy is not None:
                    client.proxy.close()
                    client.proxy = None
        findings.left_over += checker.stored(self._cluster)
        findings.add_ledger(Ledger.read(self._cluster.ledger), repeats=True)
        os.truncate(self._cluster.ledger, 0)
        return findings

    def _simulate(self, number: int, first: int) -> None:
        command = [sys.executable, "-m", "loom.sim", "--seeds", f"{first}-{first + _SEEDS - 1}"]
        done = subprocess.run(command, capture_output=True, text=True)
        self._n_simulated += _SEEDS
        if done.returncode:
            self._note(number, "simulator", done.stdout[-2000:])

    def _end(self) -> None:
        cluster, steady = self._cluster, self._steady
        assert steady is not None
        assert steady.popen.stdin is not None
        steady.popen.stdin.close()
        steady.popen.wait(_READY_S)
        for line in cluster.stop():
            self._note(0, "trouble", line)
        for line in checker.left_after_end(cluster):
            self._note(0, "left over", line)

    # -- What it comes to ---------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        cluster, steady = self._cluster, self._steady
        assert steady is not None
        assert cluster.setup.journal is not None
        processes = {
            "server": cluster.server.popen.pid,
            "worker": worker_process(cluster.workers[0]),
            "client": steady.popen.pid,
        }
        figures: Figures = {}
        for name, pid in processes.items():
            process = psutil.Process(pid)
            figures[f"{name} MB"] = process.memory_info().rss / 1e6
            figures[f"{name} descriptors"] = process.num_fds()
        figures["journal MB"] = cluster.setup.journal.stat().st_size / 1e6
        self._rounds.append(figures)

    def _thirds(self) -> dict[str, tuple[float, float]]:
        """Of each figure the median of the first and of the last third of the rounds."""
        rounds = self._rounds[_WARM_ROUNDS:]
        size = len(rounds) // 3
        if not size:
            return {}
        first, last = rounds[:size], rounds[-size:]
        return {name: (median(r[name] for r in first), median(r[name] for r in last)) for name in rounds[0]}

    def _growth(self) -> list[str]:
        return [
            f"{name}: {before:.1f} in the first third, {after:.1f} in the last"
            for name, (before, after) in self._thirds().items()
            if after > _MOST_GROWTH * before + _MOST_MORE[name.split()[-1]]
        ]

    def _add(self, findings: Findings) -> None:
        total = self._total
        total.n_results += findings.n_results
        total.n_executions += findings.n_executions
        total.n_repeated += findings.n_repeated
        total.n_accepted += findings.n_accepted
        total.n_adopted += findings.n_adopted

    def _sum_up(self) -> None:
        total = self._total
        self._say(f"\n{len(self._rounds)} rounds in {self._minute():.1f} min, seed {self._seed}")
        rows = {
            "strikes": sum(self._strikes.values()),
            "deaths and stops of the server": self._cluster.n_server_kills,
            "results that clients compared": total.n_results,
            "executions": total.n_executions,
            "of these again": total.n_repeated,
            "results accepted": total.n_accepted,
            "of these from workers that came back": total.n_adopted,
            "seeds of the simulator": self._n_simulated,
        }
        for name, value in rows.items():
            self._say(f"  {name:<38}{value:>12,}")
        for name, value in self._strikes.most_common():
            self._say(f"    {name:<36}{value:>12,}")
        for name, (before, after) in self._thirds().items():
            self._say(f"  {name:<38}{before:>12.1f} in the first third, {after:.1f} in the last")
        if self._found:
            self._say(f"found {len(self._found)}:")
            for line in self._found:
                self._say("  " + line.replace("\n", "\n    "))
            self._say(f"logs: {self._directory}/log, what was done: {self._directory}/story")
            self._say(f"again: python -m tests.chaos --soak {self._minutes:g} --seed {self._seed}")
        else:
            self._say("found nothing")

    def _note(self, number: int, category: str, line: str) -> None:
        self._found.append(f"round {number}, {category}: {line}")

    def _minute(self) -> float:
        return (time.monotonic() - self._began_s) / 60

    def _tell(self, text: str) -> None:
        with (self._directory / "story").open("a") as story:
            story.write(f"{time.monotonic() - self._began_s:9.2f} {text}\n")


def soak(seed: int, minutes: float, say: Say) -> int:
    """Exit status: 1 where anything was found."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return int(Soak(seed, minutes, say).run())
