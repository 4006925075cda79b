"""What must hold over a whole run, whatever the cores think of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loom.core import states
from loom.core.client_events import (
    Undeliverable,
)
from loom.core.cluster import Worker
from loom.core.crashes import Blame
from loom.core.node import Node
from loom.core.server import ServerCore
from loom.ids import session_of, task_id

if TYPE_CHECKING:
    from loom.sim.client import SimClient
    from loom.sim.worker import SimWorker

_GOOD_REASONS: Final = frozenset(
    {
        "the client closed its session",
        "its session was resumed on another link",
        "its worker has come back on another link",
        "the client left its session",
        "its session was taken over",
        "its session was ended from outside",
    },
)


class Ledger:
    """`killed`: by the story of an executor that was killed from outside, the task that was running in it."""

    def __init__(self, core: ServerCore) -> None:
        self.killed: dict[str, int] = {}
        self.n_accepted = 0
        self.n_restarts = 0
        self._accepted: set[tuple[int, int]] = set()
        self.n_lost_with: dict[int, int] = {}  # by the client's name of a task
        self._watch(core)

    def _watch(self, core: ServerCore) -> None:
        self._core = core
        core.graph.witness = self._on_finish
        core.witness = self._on_worker_lost

    def watch(self, core: ServerCore, accepted: set[tuple[int, int]]) -> None:
        """The server has started again; it knows that these runs were accepted."""
        self._watch(core)
        self._accepted = accepted
        self.n_restarts += 1

    def _on_finish(self, node: Node) -> None:
        run = node.id, node.attempt
        comes_back = node.worker is not None and node.worker.attaching  # what was accepted, and lost since
        assert comes_back or run not in self._accepted, f"attempt {node.attempt} of {node} was accepted twice"
        self._accepted.add(run)
        self.n_accepted += 1

    def _on_worker_lost(self, worker: Worker, blame: Blame | None) -> None:
        if blame is not None:
            for session in self._core.graph.sessions.values():
                for node in session.nodes():
                    if node.worker is worker and node.state == states.ASSIGNED:
                        known_as = task_id(session.id, node.users_number)
                        self.n_lost_with[known_as] = self.n_lost_with.get(known_as, 0) + 1

    def on_close_link(self, reason: str) -> None:
        assert reason in _GOOD_REASONS, f"the server cuts a link: {reason}"

    def on_undeliverable(self, client: SimClient, effect: Undeliverable) -> None:
        raise AssertionError(f"{client} could not get result {effect.number}: {effect.reason}")

    def check_session_empty(self, number: int, workers: list[SimWorker]) -> None:
        """After all of a session's results have been released, some time ago."""
        session = self._core.graph.sessions.get(number)
        if session is not None:
            assert not session.n_nodes, f"{session} has tasks left: {list(session.nodes())}"
        for worker in workers:
            left = [f"{i:#x}" for i in worker.store if worker.alive and session_of(i) == number]
            assert not left, f"{worker} stores objects of a session that has released all: {left}"

    def check_nothing_left(self, workers: list[SimWorker]) -> None:
        """After all sessions have ended."""
        core = self._core
        assert not core.graph.sessions, f"sessions are left: {list(core.graph.sessions.values())}"
        assert not core.clients.dying, f"sessions are not taken apart: {core.clients.dying}"
        assert core.graph.n_finished == 0, f"{core.graph.n_finished} objects are left"
        assert len(core.relays) == 0, "relays are left"
        for of_server in core.workers.values():
            assert not of_server.loads, f"{of_server} is charged with {of_server.loads}"
            assert not of_server.asked, f"{of_server} has not answered"
            assert not of_server.ahead, f"{of_server} is to be sent {of_server.ahead} ahead"
        for worker in workers:
            of_worker = worker.core
            assert not of_worker.tasks, f"{worker} has tasks: {list(of_worker.tasks.values())}"
            assert not of_worker.queues.placed, f"{worker} runs {list(of_worker.queues.placed)}"
            assert of_worker.queues.free_cpus == of_worker.queues.cpus, f"{worker} has cores in use"
            left = of_worker.held or of_worker.fetching or of_worker.awaited or of_worker.copies
            assert not left, f"{worker} has something left: {left}"
            assert not worker.relays, f"{worker} is not done with sending {[f'{i:#x}' for i in worker.relays]}"
            assert not worker.store, f"{worker} stores objects: {[f'{i:#x}' for i in worker.store]}"
