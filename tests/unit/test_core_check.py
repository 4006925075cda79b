"""The checks notice what they are for, and whatever a peer says costs nobody else anything."""

from collections.abc import Callable
from random import Random

import msgspec
import pytest
from core_builders import Bench, Row, chunk_of, finished, numbers
from worker_builders import accepted

from loom.core import states
from loom.core.check import check_client, check_server, check_worker
from loom.core.client import ClientCore
from loom.core.client_events import (
    Connected,
    FromServer,
)
from loom.core.events import LinkDown, LinkUp, Received, ServerEvent
from loom.core.server import ServerCore
from loom.core.worker import WorkerCore
from loom.core.worker_events import FromServer as WorkerHears
from loom.ids import SERVER_MADE
from loom.messages import (
    ClientToServer,
    FailedTask,
    Message,
    OpenSession,
    PlanChunk,
    RegisterWorker,
    ResultsReady,
    RunTask,
    RunTasks,
    SessionOpened,
    SubmitChunk,
    TaskKind,
    TaskRedirected,
    TasksFailed,
    TasksGivenBack,
    WorkerToServer,
)
from loom.resources import Request

CLIENT, OTHER, W1, W2 = 1, 2, 11, 12
REGISTER = RegisterWorker("w", 2, [], "h", 1, "", ["t/work"], 0, (0, 0, 0))


def busy_server() -> ServerCore:
    """Task 0 finished, 1 assigned, 2 waiting for 1, 3 ready, 4 and 5 as well."""
    bench = Bench()
    bench.client(CLIENT)
    bench.worker(W1)
    rows = [Row(result=True), Row([0], cpus=2), Row([1], result=True), Row(result=True, cpus=9)]
    said = bench.submit(CLIENT, rows)
    bench.worker(W2, cpus=2)
    bench.finish(W1, *said.tasks(W1))
    return bench.core


def spoil_unmet(core: ServerCore) -> None:
    core.graph.sessions[1].find(2).n_unmet = 0  # type: ignore[union-attr]


def spoil_pending(core: ServerCore) -> None:
    core.graph.sessions[1].find(0).n_pending -= 1  # type: ignore[union-attr]


def spoil_ready(core: ServerCore) -> None:
    core.graph.sessions[1].ready.clear()


def spoil_loads(core: ServerCore) -> None:
    core.workers[2].loads.clear()


def spoil_count(core: ServerCore) -> None:
    core.graph.n_finished += 1


def spoil_holder(core: ServerCore) -> None:
    core.graph.sessions[1].find(0).worker = None  # type: ignore[union-attr]


def spoil_consumers(core: ServerCore) -> None:
    core.graph.sessions[1].find(1).consumers = []  # type: ignore[union-attr]


def spoil_state(core: ServerCore) -> None:
    core.graph.sessions[1].find(2).state = states.DROPPED  # type: ignore[union-attr]


def spoil_link(core: ServerCore) -> None:
    core.graph.sessions[1].link = 77


def spoil_outbox(core: ServerCore) -> None:
    core.graph.to_drop.append((core.workers[1], 1))


SPOILS = [value for name, value in globals().copy().items() if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_spoilt_server_is_noticed(spoil: Callable[[ServerCore], None]) -> None:
    core = busy_server()
    check_server(core, complete=[1])
    spoil(core)
    with pytest.raises(AssertionError):
        check_server(core, complete=[1])


def test_a_spoilt_worker_is_noticed() -> None:
    def busy() -> WorkerCore:
        core = WorkerCore(1, {"t/work": "program"})
        core.step([WorkerHears([accepted(1)])], 0.0)
        tasks = [RunTask(n, 1, 0, 0, 0, 1, b"", [n - 1] if n > 1 else []) for n in (1, 2)]
        core.step([WorkerHears([RunTasks([TaskKind(0, "t/work", "", Request(1))], [], [], tasks)])], 0.0)
        check_worker(core)
        return core

    core = busy()
    core.queues.free_cpus = 1
    with pytest.raises(AssertionError, match="cpus"):
        check_worker(core)
    core = busy()
    core.awaited.clear()
    with pytest.raises(AssertionError, match="await"):
        check_worker(core)
    core = busy()
    core.tasks[2].n_missing = 0
    with pytest.raises(AssertionError, match="misses"):
        check_worker(core)
    core = busy()
    del core.tasks[1]
    with pytest.raises(AssertionError, match="never comes"):
        check_worker(core)


def test_a_spoilt_client_is_noticed() -> None:
    core = ClientCore(b"")
    core.step([Connected()], 0.0)
    core.step([FromServer([SessionOpened(1, 1, 5, 0, 0, [], b"ticket"), ResultsReady([], [])])], 0.0)
    check_client(core)
    core.holders[3] = 9
    with pytest.raises(AssertionError, match="address"):
        check_client(core)


# -- Whatever a peer says ---------------------------------------------------------------------------------------------


def spoilt_chunk(rng: Random, first: int) -> PlanChunk:
    """A plausible chunk with some column, number or length wrong."""
    rows = [
        Row([rng.randrange(first + n) for _ in range(rng.randint(0, 3))] if first + n else [], rng.random() < 0.5)
        for n in range(rng.randint(1, 6))
    ]
    chunk = chunk_of(rows, first, plan_first=rng.choice((first, max(0, first - 1), first + 1)) if first else 0)
    for _ in range(rng.randint(0, 2)):
        field = rng.choice(PlanChunk.__struct_fields__)
        value = getattr(chunk, field)
        if isinstance(value, bytes) and value:
            changed = bytearray(value)
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 2, 3, 255))
            setattr(chunk, field, bytes(changed) if rng.random() < 0.7 else value[: rng.randint(0, len(value))])
        elif isinstance(value, bool):
            setattr(chunk, field, not value)
        elif isinstance(value, int):
            setattr(chunk, field, value + rng.choice((-1, 1, SERVER_MADE)) if value else 1)
    return chunk


def random_message(rng: Random, union: object, known: list[Message]) -> Message:
    """A message of the union with small numbers, or one that was said before."""
    if known and rng.random() < 0.3:
        return rng.choice(known)
    kind = rng.choice(union.__args__)  # type: ignore[attr-defined]
    fields = []
    for field in msgspec.structs.fields(kind):
        if field.type is bytes or field.name in ("packed", "token"):
            size = rng.choice((0, 8, 8, 16, 5))
            fields.append(bytes(rng.choice((0, 0, 1, 2)) for _ in range(size)))
        elif field.name == "chunk":
            fields.append(spoilt_chunk(rng, SERVER_MADE if kind is TaskRedirected else 0))
        elif field.type is str or field.name in ("error", "host", "name", "handover", "end"):
            fields.append("")
        elif field.type is bool:
            fields.append(rng.random() < 0.5)
        elif field.name in ("tasks", "symbols", "names"):
            fields.append([])
        else:
            fields.append(rng.choice((1, 1, 2, 3, 1 << 40, 1 << 40 | 1)))
    return kind(*fields)  # type: ignore[no-any-return]


def answers(rng: Random, task: RunTask) -> Message:
    """Something a worker may say of a task that it was given."""
    what = rng.randrange(5)
    if what == 0:
        return TasksFailed([FailedTask(task.task, task.attempt, "broken")])
    if what == 1:
        return TaskRedirected(task.task, task.attempt, spoilt_chunk(rng, SERVER_MADE))
    if what == 2:
        return TasksGivenBack(numbers(task.task), numbers(task.attempt), rng.random() < 0.5)
    return finished(task)


class Crowd:
    """A server with a good client and a good worker, and a peer that says anything at all."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.core = ServerCore(1)
        self.now = 0.0
        self.link = 100
        self.role = ""
        self.known: list[Message] = []
        self.numbered = self.seq = 0
        self.step(LinkUp(OTHER, "client"), Received(OTHER, [OpenSession(b"good", 0, "", "", False)]))
        self.step(LinkUp(W2, "worker"), Received(W2, [REGISTER]))

    def step(self, *events: ServerEvent) -> None:
        """With whatever follows from it at the good worker."""
        ahead = list(events)
        for _ in range(20):
            self.now += 0.001
            effects = self.core.step(ahead, self.now)
            ahead = []
            for effect in effects:
                for message in getattr(effect, "messages", []):
                    if not isinstance(message, RunTasks):
                        continue
                    if effect.link == W2:
                        ahead.append(Received(W2, [finished(task) for task in message.tasks]))
                    else:
                        self.known += [answers(self.rng, task) for task in message.tasks]
            if not ahead:
                break

    def disturb(self) -> None:
        rng = self.rng
        if self.link not in self.core.peers:  # cut: it comes again
            self.link += 1
            self.role = rng.choice(("client", "worker"))
            hello = OpenSession(b"x", 0, "", "", False) if self.role == "client" else REGISTER
            self.step(LinkUp(self.link, self.role), Received(self.link, [hello]))
            self.known, self.numbered, self.seq = [], 0, 0
        if rng.random() < 0.5 and self.role == "client":
            self.seq += 1
            chunk = spoilt_chunk(rng, self.numbered)
            self.numbered += len(chunk.flags)
            self.step(Received(self.link, [SubmitChunk(self.seq, chunk, [])]))
        elif self.role == "client":
            self.step(Received(self.link, [random_message(rng, ClientToServer, self.known)]))
        else:
            self.step(Received(self.link, [random_message(rng, WorkerToServer, self.known)]))


@pytest.mark.parametrize("seed", range(200))
def test_whatever_a_peer_says_the_others_go_on(seed: int) -> None:
    crowd = Crowd(Random(seed))
    for _ in range(40):
        crowd.disturb()
    crowd.step(LinkDown(crowd.link))
    crowd.now += 100
    crowd.step(Received(OTHER, [SubmitChunk(1, chunk_of([Row(result=True)]), [])]))
    session = crowd.core.graph.sessions[1]
    for _ in range(5):
        crowd.step()
    node = session.find(0)
    assert node is not None
    assert node.state == states.FINISHED
    assert crowd.core.peers[OTHER] is session
    assert W2 in crowd.core.peers
    check_server(crowd.core)
