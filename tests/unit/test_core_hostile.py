"""Clients and workers that say whatever they like beside some that do their work. Whatever it is, it costs them their
own links at most: the others finish what they were about, and every invariant of the graph holds after every step.
"""

from __future__ import annotations

from zlib import crc32

from core_builders import SERVER, Row, chunk_of, fold, inventory, numbers
from hostile_peers import Speaker
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from loom.core.check import check_server
from loom.core.client import ClientCore
from loom.core.client_events import (
    ClientEvent,
    Closed,
    Connect,
    Connected,
    Disconnected,
    FailedFutures,
    Fetch,
    FetchedDirectly,
    FetchFailed,
    FetchResults,
    FromServer,
    Ready,
    RelayPiece,
    ReleaseResults,
    Submit,
    ToServer,
    Undeliverable,
)
from loom.core.columns import column
from loom.core.compact import compacted
from loom.core.events import CloseLink, LinkDown, LinkDrained, LinkFull, LinkUp, Received, Record, Send, ServerEvent
from loom.core.server import ServerCore
from loom.errors import ProtocolError
from loom.facts import AnyFact
from loom.ids import session_of
from loom.limits import MAX_FRAME_BYTES, REATTACH_S, SESSION_GRACE_S
from loom.messages import (
    RESULT,
    CancelTasks,
    CheckpointWritten,
    ClientToServer,
    DropObjects,
    FinishedTask,
    ForgetSession,
    GiveBack,
    Message,
    NotTaken,
    RecallTasks,
    RegisterWorker,
    RelayObject,
    RunTask,
    RunTasks,
    ServerToClient,
    ServerToWorker,
    TakeObjects,
    TasksFinished,
    TasksGivenBack,
    WorkerAccepted,
    WorkerToServer,
    WriteCheckpoint,
)
from loom.messages import RelayPiece as PieceSent
from loom.wire.codec import Decoder, encode
from loom.wire.framing import HEADER_BYTES

CLIENT, WORKER = 1, 2
_FIRST_LINK = 10
_MOST_LINKS = 6
_DECODERS = {"client": Decoder(ClientToServer), "worker": Decoder(WorkerToServer)}
_REPLIES = {"client": Decoder(ServerToClient), "worker": Decoder(ServerToWorker)}
_PLAN = [Row(symbol="t/good", config=b"%d" % n) for n in range(3)]
_PLAN += [Row([0, 1], symbol="t/good"), Row([2, 2, 3], symbol="t/good"), Row([3], True, symbol="t/good")]
_PLAN += [Row([4, 5], True, symbol="t/good"), Row([6], True, symbol="t/good", retries=1)]
_RESULTS = [n for n, row in enumerate(_PLAN) if row.result]


def result_of(config: bytes, inputs: list[bytes]) -> bytes:
    return b"%08x" % crc32(b"/".join([config, *inputs]))


def expected(first: int) -> dict[int, bytes]:
    """The result of every task of the plan that begins at this number."""
    values: list[bytes] = []
    for row in _PLAN:
        values.append(result_of(row.config, [values[n] for n in row.inputs]))
    return {first + n: values[n] for n in _RESULTS}


class GoodWorker:
    """Runs what it is given, one task after the other, and answers for everything."""

    def __init__(self) -> None:
        self.id = self.incarnation = 0
        self.held: dict[int, tuple[bytes, int]] = {}  # object id -> what it is, and the attempt
        self.tasks: dict[int, RunTask] = {}
        self.said: list[Message] = []

    def register(self) -> Message:
        self.said.clear()
        before = (SERVER, self.incarnation, self.id)
        return RegisterWorker("good", 2, [("mem", 5)], "host", 1, "", ["t/good"], 0, before)

    def hear(self, message: Message) -> None:
        match message:
            case WorkerAccepted():
                self.id, self.incarnation = message.worker, message.incarnation
                if message.keeps:
                    objects = [FinishedTask(i, attempt, 9, 2, 0, None) for i, (_, attempt) in self.held.items()]
                    self.said.append(inventory(objects, list(self.tasks.values())))
                else:
                    self.held.clear()
                    self.tasks.clear()
            case RunTasks():
                for task in message.tasks:
                    self.held.pop(task.task, None)
                    self.tasks[task.task] = task
                self._give_strays_back()
            case CancelTasks() | RecallTasks():
                for task_id in column(message.tasks, "Q"):
                    if isinstance(message, CancelTasks):
                        self.held.pop(task_id, None)
                    if task_id in self.tasks:
                        task = self.tasks.pop(task_id)
                        if isinstance(message, RecallTasks):
                            self._give_back([task], answer=False)
                self._give_strays_back()
            case GiveBack():
                given = list(self.tasks.values())[::-1][: message.count]
                for task in given:
                    del self.tasks[task.task]
                self._give_back(given, answer=True)
                self._give_strays_back()
            case DropObjects():
                for object_id in column(message.objects, "Q"):
                    self.held.pop(object_id, None)
                self._give_strays_back()
            case ForgetSession():
                self.held = {i: o for i, o in self.held.items() if session_of(i) != message.session}
                self.tasks = {i: t for i, t in self.tasks.items() if session_of(i) != message.session}
            case WriteCheckpoint():
                if message.object in self.held:
                    self.said.append(CheckpointWritten(message.object, ""))
                else:
                    self.said.append(PieceSent(message.object, b"", b"", False, "it is not here"))
            case RelayObject():
                if not message.go_on:
                    packed = self.held.get(message.object, (b"", 0))[0]
                    error = "" if packed else "it is not here"
                    self.said.append(PieceSent(message.object, b"", packed, True, error))
            case TakeObjects():
                self.said.append(NotTaken(numbers(*(one.object for one in message.objects))))

    def _give_back(self, tasks: list[RunTask], answer: bool) -> None:
        ids, attempts = numbers(*(t.task for t in tasks)), numbers(*(t.attempt for t in tasks))
        self.said.append(TasksGivenBack(ids, attempts, answer))

    def _give_strays_back(self) -> None:
        """What takes something that is neither here nor made here before it: it is at a liar."""
        coming: set[int] = set()
        for task in list(self.tasks.values()):
            if all(i in self.held or i in coming for i in task.inputs):
                coming.add(task.task)
            else:
                del self.tasks[task.task]
                self._give_back([task], answer=False)

    def work(self, count: int) -> None:
        for task in list(self.tasks.values())[:count]:
            if not all(i in self.held for i in task.inputs):  # what it waits for was sent later
                continue
            del self.tasks[task.task]
            packed = result_of(task.config, [self.held[i][0] for i in task.inputs])
            self.held[task.task] = packed, task.attempt
            inline = packed if task.flags & RESULT else None
            self.said.append(TasksFinished([FinishedTask(task.task, task.attempt, 9, 2, 5, inline)]))


class GoodClient:
    """The real core, and what it has come to know."""

    def __init__(self) -> None:
        self.core = ClientCore(b"nobody knows this")
        self.results: dict[int, bytes] = {}
        self.finished: set[int] = set()
        self.said: list[Message] = []
        self.away = False

    def step(self, now: float, good_worker: int, *events: ClientEvent) -> None:
        todo = list(events)
        while todo:
            effects = self.core.step(todo, now)
            todo = []
            for effect in effects:
                match effect:
                    case ToServer():
                        self.said += effect.messages
                    case Ready():
                        for result in effect.results:
                            self.finished.add(result.number)
                            if result.packed is not None:
                                self.results[result.number] = result.packed
                    case Fetch():
                        for number in effect.numbers:
                            todo.append(FetchFailed(number, "it cannot be reached"))
                    case RelayPiece():
                        self.results[effect.number] = effect.piece
                        todo.append(FetchedDirectly(effect.number))
                    case Connect():
                        self.away = True
                    case FailedFutures() | Undeliverable() | Closed():
                        raise AssertionError(f"a good client is told {effect}")


class HostilePeers(RuleBasedStateMachine):
    """The good peers' frames arrive at once; the others' are whatever is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.core: ServerCore
        self.now = 100.0
        self.journal: list[AnyFact] = []
        self.roles = {CLIENT: "client", WORKER: "worker"}  # by link, those that are up
        self.begun: set[int] = set()  # hostile links over which something was said that was taken
        self.closing: list[int] = []  # links that the core has closed
        self.full: set[int] = set()
        self.relayed: list[int] = []
        self.next_link = _FIRST_LINK
        self.worker = GoodWorker()
        self.client = GoodClient()
        self.submitted: dict[int, bytes] = {}
        self.next_number = 0

    # -- The server ---------------------------------------------------------------------------------------------------

    @initialize(with_journal=st.booleans())
    def begin(self, with_journal: bool) -> None:
        self.with_journal = with_journal
        self.core = ServerCore(1, server=SERVER, past=fold([]) if with_journal else None)
        self.step()
        self.good_peers_come()

    def good_peers_come(self) -> None:
        self.step(LinkUp(CLIENT, "client"), LinkUp(WORKER, "worker"))
        self.worker_says(self.worker.register())
        self.client.away = False
        self.client.step(self.now, self.worker.id, Connected())
        self.pump()
        self.step(after_s=REATTACH_S if self.core.attaching.settling else 0.0)
        self.pump()

    def step(self, *events: ServerEvent, after_s: float = 0.0) -> None:
        self.now += after_s
        downs = [LinkDown(link) for link in self.closing]
        self.closing.clear()
        for effect in self.core.step([*downs, *events], self.now):
            match effect:
                case Send():
                    self.deliver(effect)
                case CloseLink():
                    assert effect.link not in (CLIENT, WORKER), f"a good peer's link is closed: {effect.reason}"
                    self.roles.pop(effect.link, None)
                    self.closing.append(effect.link)
                case Record():
                    assert self.with_journal
                    self.journal += effect.facts
        check_server(self.core)

    def deliver(self, effect: Send) -> None:
        frame = encode(effect.messages)
        assert len(frame) < MAX_FRAME_BYTES
        role = self.roles.get(effect.link)
        if role is None:  # it has gone in the same turn
            return
        messages = _REPLIES[role].decode(bytes(frame[HEADER_BYTES:]))
        if effect.link == WORKER:
            for message in messages:
                self.worker.hear(message)
        elif effect.link == CLIENT:
            self.client.step(self.now, self.worker.id, FromServer(messages))
        else:
            self.relayed += [message.object for message in messages if isinstance(message, RelayObject)]

    def worker_says(self, message: Message) -> None:
        self.step(Received(WORKER, [message]))

    def pump(self) -> None:
        """Until the good peers have nothing to say."""
        for _ in range(1000):
            if not self.worker.said and not self.client.said and not self.closing:
                return
            said, self.worker.said = self.worker.said, []
            if said:
                self.step(Received(WORKER, said))
            said, self.client.said = self.client.said, []
            if said:
                self.step(Received(CLIENT, said))
            self.step()
        raise AssertionError("it never comes to rest")

    # -- Those who do their work --------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 4))
    def work(self, count: int) -> None:
        self.worker.work(count)
        self.pump()

    @precondition(lambda self: len(self.submitted) < 3 * len(_RESULTS))
    @rule()
    def submit(self) -> None:
        first = self.next_number
        rows = [row._replace(inputs=[first + n for n in row.inputs]) for row in _PLAN]
        self.next_number += len(rows)
        self.submitted |= expected(first)
        self.client.step(self.now, self.worker.id, Submit(chunk_of(rows, first)))
        self.pump()

    @rule(after_s=st.sampled_from((0.0, 0.3, SESSION_GRACE_S)))
    def time_passes(self, after_s: float) -> None:
        self.step(after_s=after_s)
        self.pump()

    @precondition(lambda self: self.with_journal)
    @rule(compact=st.booleans())
    def server_dies(self, compact: bool) -> None:
        """And starts again from its journal. The good come back."""
        for link in [link for link in self.roles if link >= _FIRST_LINK]:
            del self.roles[link]
        self.begun.clear()
        self.closing.clear()
        self.full.clear()
        facts = list(compacted(fold(self.journal))) if compact else self.journal
        past = fold(facts)
        self.journal = list(facts)
        self.core = ServerCore(past.incarnation + 1, server=SERVER, past=past)
        self.step()
        self.client.said.clear()
        self.client.step(self.now, self.worker.id, Disconnected("the server died"))
        assert self.client.away
        self.good_peers_come()

    # -- The others ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.roles) < 2 + _MOST_LINKS)
    @rule(role=st.sampled_from(("client", "worker")), well=st.booleans(), data=st.data())
    def hostile_comes(self, role: str, well: bool, data: st.DataObject) -> None:
        link, self.next_link = self.next_link, self.next_link + 1
        self.roles[link] = role
        self.step(LinkUp(link, role))
        if well:
            self.step(Received(link, [self.speaker(data).opens_well(role)]))
            self.pump()
        self.say(link, data)

    @precondition(lambda self: len(self.roles) > 2)
    @rule(data=st.data())
    def hostile_speaks(self, data: st.DataObject) -> None:
        hostile = [link for link in self.roles if link >= _FIRST_LINK]
        self.say(data.draw(st.sampled_from(hostile)), data)

    @precondition(lambda self: len(self.roles) > 2)
    @rule(data=st.data())
    def hostile_goes(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from([link for link in self.roles if link >= _FIRST_LINK]))
        del self.roles[link]
        self.step(LinkDown(link))
        self.pump()

    @precondition(lambda self: len(self.roles) > 2)
    @rule(data=st.data(), drained=st.booleans())
    def hostile_does_not_read(self, data: st.DataObject, drained: bool) -> None:
        link = data.draw(st.sampled_from([link for link in self.roles if link >= _FIRST_LINK]))
        self.step(LinkDrained(link) if drained else LinkFull(link))
        self.pump()

    def speaker(self, data: st.DataObject) -> Speaker:
        return Speaker(self.core, data.draw, self.client.core.session or 0, self.relayed[-4:])

    def say(self, link: int, data: st.DataObject) -> None:
        """Some messages, as far as the codec lets them through."""
        for _ in range(data.draw(st.sampled_from((4, 1, 2, 8)))):
            speaker = self.speaker(data)
            peer = self.core.peers.get(link)
            if link not in self.roles or peer is None:
                break
            session = next((s for s in self.core.graph.sessions.values() if s.link == link), None)
            if self.roles[link] == "client":
                message = speaker.of_client(session) if session is not None else speaker.first_of_client()
            else:
                message = speaker.of_worker(link) if not isinstance(peer, str) else speaker.first_of_worker()
            try:
                said = _DECODERS[self.roles[link]].decode(bytes(encode([message])[HEADER_BYTES:]))
            except ProtocolError:
                del self.roles[link]
                self.step(LinkDown(link))
            else:
                self.step(Received(link, said))
        self.pump()

    # -- The end ------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self.finish_work()
        hostile = [link for link in self.roles if link >= _FIRST_LINK]
        self.step(*[LinkDown(link) for link in hostile])
        self.client.step(self.now, self.worker.id, ReleaseResults(list(self.submitted)))
        self.pump()
        self.step(after_s=SESSION_GRACE_S * 10)
        for _ in range(50):
            self.step()
        left = [session for session in self.core.graph.sessions.values() if not session.name]
        assert [session.id for session in left] == [self.client.core.session], "sessions are left"
        assert not left[0].n_nodes, f"tasks are left: {list(left[0].nodes())}"
        assert not self.core.clients.dying
        assert len(self.core.graph.sessions) <= 1 + 3, "more sessions are left than there were names"
        assert not any(session_of(i) == left[0].id for i in self.worker.held), "objects are left"
        if self.with_journal:
            past = fold(self.journal)
            again = ServerCore(past.incarnation + 1, server=SERVER, past=past)
            again.step([], self.now)
            check_server(again)

    def finish_work(self) -> None:
        """The good pipeline comes to its end, with the others still there."""
        for _ in range(200):
            if self.client.finished >= self.submitted.keys():
                break
            self.worker.work(10)
            self.pump()
            self.step(after_s=0.3)
            self.pump()
        assert self.client.finished >= self.submitted.keys(), "the good pipeline never came to its end"
        there = [number for number in self.submitted if number not in self.client.results]  # since the server died
        self.client.step(self.now, self.worker.id, FetchResults(there))
        for _ in range(20):
            self.pump()
        assert self.client.results == self.submitted


TestHostilePeers = HostilePeers.TestCase
TestHostilePeers.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
