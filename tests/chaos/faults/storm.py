"""One strike at a time, of any kind, at a cluster whose server has a journal and whose links lead through proxies."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psutil

from chaos.cluster import Process, Setup, Trouble
from chaos.faults.fault import Run
from proxy import BOTH, FROM_TARGET, TO_TARGET, Proxy

_NEVER_BYTES: Final = 1 << 40
_SILENCE_S: Final = 2
_LEAVE_S: Final = 20.0  # a server that was told to stop


def prepare_storm(setup: Setup) -> None:
    setup.n_workers = 3
    setup.proxied = setup.client_proxied = True
    setup.server_options += ["--worker-timeout", str(_SILENCE_S), "--crash-limit", "0"]


def kill_server(run: Run) -> None:
    run.cluster.kill_server()
    if run.rng.random() < 0.7:
        run.between(0, 3)
    run.cluster.restart_server()


def end_server(run: Run) -> None:
    """Tell it to stop, and wait until it has."""
    server = run.cluster.server
    run.cluster.n_server_kills += 1
    run.cluster.strike(f"SIGTERM to {server.name}")
    server.popen.terminate()
    if server.popen.wait(_LEAVE_S):
        raise Trouble(f"{server.name} left with status {server.popen.returncode}")


def stop_server(run: Run) -> None:
    end_server(run)
    run.between(0, 1)
    run.cluster.restart_server()


def pause_server(run: Run) -> None:
    run.cluster.pause(run.cluster.server, signal.SIGSTOP)
    run.between(0.2, 3)
    run.cluster.pause(run.cluster.server, signal.SIGCONT)


def kill_server_and_worker(run: Run) -> None:
    run.cluster.kill_server()
    kill_worker(run)
    run.cluster.restart_server()


def kill_all(run: Run) -> None:
    run.cluster.kill_server()
    for worker in run.victims():
        run.cluster.kill(worker, run.rng.random())
    run.cluster.restart_server()
    run.replace_dead()


def kill_worker(run: Run) -> None:
    worker = run.some_victim()
    if worker is not None:
        run.cluster.kill(worker, run.rng.random())
    _replace_some(run)


def drain_worker(run: Run) -> None:
    worker = run.some_victim()
    if worker is not None:
        run.cluster.terminate(worker)
    _replace_some(run)


def pause_worker(run: Run) -> None:
    """For longer than its silence is borne, or not."""
    worker = run.some_worker()
    if worker is not None:
        inner = run.rng.random() < 0.3
        run.cluster.pause(worker, signal.SIGSTOP, inner)
        run.between(0.2, 2.5 * _SILENCE_S)
        run.cluster.pause(worker, signal.SIGCONT, inner)


def kill_executor(run: Run) -> None:
    executors = run.cluster.executors()
    if executors:
        victim = run.rng.choice(executors)
        run.cluster.strike(f"kill -9 executor {victim.pid}")
        with suppress(psutil.NoSuchProcess):
            victim.kill()


def disturb_worker_link(run: Run) -> None:
    worker = run.some_worker()
    if worker is not None and worker.proxy is not None:
        _disturb(run, worker, worker.proxy)


def disturb_client_link(run: Run) -> None:
    if run.client.proxy is not None:
        _disturb(run, run.client, run.client.proxy)


def pause_client(run: Run) -> None:
    run.cluster.pause(run.client, signal.SIGSTOP)
    run.between(0.2, 3)
    run.cluster.pause(run.client, signal.SIGCONT)


STRIKES: Final[tuple[Callable[[Run], None], ...]] = (
    kill_server,
    kill_server,
    stop_server,
    pause_server,
    kill_server_and_worker,
    kill_all,
    kill_worker,
    kill_worker,
    drain_worker,
    pause_worker,
    kill_executor,
    disturb_worker_link,
    disturb_worker_link,
    disturb_client_link,
    disturb_client_link,
    pause_client,
)


def strike_once(run: Run, strike: Callable[[Run], None]) -> None:
    if not run.cluster.living_workers():
        run.replace_dead()
    strike(run)


def heal_links(run: Run) -> None:
    for process in [*run.cluster.living_workers(), *run.cluster.clients]:
        if process.proxy is not None and process.alive:
            process.proxy.flip(TO_TARGET, _NEVER_BYTES)
            process.proxy.flip(FROM_TARGET, _NEVER_BYTES)
            process.proxy.delay(0)
            process.proxy.go_on()


def _replace_some(run: Run) -> None:
    if run.rng.random() < 0.6:
        run.replace_dead()


def _disturb(run: Run, process: Process, proxy: Proxy) -> None:
    how = run.rng.choice(("reset", "half-close", "stall", "flip", "slow", "refuse"))
    direction = run.rng.choice(BOTH)
    run.cluster.strike(f"the link of {process.name}: {how} {direction}")
    match how:
        case "reset":
            proxy.cut()
        case "half-close":
            proxy.half_close(direction)
        case "stall":
            proxy.stall(direction)
            run.between(0.2, 2 * _SILENCE_S)
            proxy.go_on()
        case "flip":
            proxy.flip(direction, run.rng.randrange(10_000))
        case "slow":
            proxy.delay(run.rng.uniform(0, 0.3))
            run.between(0.5, 3)
            proxy.delay(0)
        case "refuse":
            proxy.refuse()
            proxy.cut()
            run.between(0.1, 3)
            proxy.refuse(False)
