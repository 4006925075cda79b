"""WS: the server alone, core plus wire, with workers and a client that are only played, all in this process.

What counts is the server's own time: it takes frames in as its shell does, decides, and encodes what it says. What the
played peers need to read that and to answer does not count, nor do sockets.
"""

from __future__ import annotations

import gc
import time
from array import array
from functools import partial
from typing import NoReturn

from benchmarks import bodies
from benchmarks.bench import Bench
from benchmarks.measuring import Side, Target
from benchmarks.meter import Meter
from loom.client import tasks
from loom.core.events import LinkUp, Received, Send, ServerEvent
from loom.core.server import ServerCore
from loom.data.pack import to_packed
from loom.data.plain import Plain
from loom.messages import (
    ClientToServer,
    FinishedTask,
    GiveBack,
    Message,
    OpenSession,
    RegisterWorker,
    ResultsReady,
    RunTasks,
    ServerToClient,
    ServerToWorker,
    SubmitChunk,
    TasksFinished,
    TasksGivenBack,
    WorkerToServer,
)
from loom.tasktypes.plan import Reference, encode_plan
from loom.wire.codec import Decoder, encode
from loom.wire.framing import HEADER_BYTES, FrameReader

_N_TASKS = 100_000
_WORKERS = (2, 100, 1_000)
_CLIENT = 1  # its link; those of workers follow
_CREDIT_BYTES = 1 << 30
_DURATION_US = 10
_MANY_TURNS = 100_000  # more than that, and nothing moves any more

noop_direct = tasks.py_task(n_direct_args=1)(bodies.noop)


def ws(bench: Bench) -> None:
    n = bench.size(_N_TASKS // 5 if bench.options.quick else _N_TASKS)
    for n_workers in _WORKERS:
        bench.compare(
            f"server alone, bag of {n:,} tasks, {n_workers:,} workers",
            "tasks/s",
            Side("loom", partial(serve_bag, n, n_workers), partial(_rate, n), n),
            target=Target(100_000, "at least", "figure"),
            x=n_workers,
        )


def _rate(n: int, meter: Meter) -> float:
    return n / meter.parts["server"]


def serve_bag(n: int, n_workers: int, meter: Meter) -> None:
    """The server's seconds go to the part "server" of the meter."""
    plan = encode_plan([noop_direct(i) for i in range(n)], 0, _no_number)
    chunks = [bytes(encode([SubmitChunk(seq, chunk, [])])) for seq, chunk in enumerate(plan.chunks, 1)]
    symbols = sorted({symbol for chunk in plan.chunks for symbol in chunk.symbols})
    server = _Server()
    world = _World(symbols)
    for link in range(_CLIENT + 1, _CLIENT + 1 + n_workers):
        server.connect(link, "worker", world.introduction(link))
    server.connect(_CLIENT, "client", bytes(encode([OpenSession(b"token", _CREDIT_BYTES, "", "", False)])))
    server.turn({})  # what there is to say to newcomers
    with meter:
        gc.disable()  # as the server does
        try:
            frames: dict[int, bytes] = {}
            for turn in range(_MANY_TURNS):
                if turn < len(chunks):
                    frames[_CLIENT] = chunks[turn]
                frames = world.answers(server.turn(frames))
                if world.n_ready == n:
                    break
            else:
                raise RuntimeError(f"{world.n_ready:,} of {n:,} tasks are finished, and nothing moves any more")
        finally:
            gc.enable()
    meter.parts["server"] = server.spent_s


class _Server:
    """The core with the wire around it, as the server's shell has them."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self._core = ServerCore(incarnation=1)
        self._readers: dict[int, FrameReader] = {}
        self._decoders: dict[int, Decoder] = {}
        self._newcomers: list[ServerEvent] = []

    def connect(self, link: int, role: str, frame: bytes) -> None:
        self._readers[link] = FrameReader()
        self._decoders[link] = Decoder(ClientToServer if role == "client" else WorkerToServer)
        self._newcomers += [LinkUp(link, role), Received(link, self._decoded(link, frame))]

    def turn(self, frames: dict[int, bytes]) -> dict[int, bytearray]:
        """Take in a frame of each link; what is said to each."""
        began = time.perf_counter()
        events, self._newcomers = self._newcomers, []
        events += [Received(link, self._decoded(link, frame)) for link, frame in frames.items()]
        said = {
            effect.link: encode(effect.messages)
            for effect in self._core.step(events, time.monotonic())
            if isinstance(effect, Send)
        }
        self.spent_s += time.perf_counter() - began
        return said

    def _decoded(self, link: int, frame: bytes) -> list[Message]:
        reader = self._readers[link]
        rest = memoryview(frame)
        while True:
            room = reader.buffer()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            reader.received(count)
            rest = rest[count:]
            payload = reader.next_frame()
            if payload is not None:
                return self._decoders[link].decode(payload)


class _World:
    """The client and the workers. A worker has finished whatever it is given by the next turn."""

    def __init__(self, symbols: list[str]) -> None:
        self.n_ready = 0
        self._symbols = symbols
        self._result = to_packed(Plain(b""))
        self._to_client = Decoder(ServerToClient)
        self._to_worker = Decoder(ServerToWorker)

    def introduction(self, link: int) -> bytes:
        register = RegisterWorker(f"w{link}", 1, [], "127.0.0.1", link, "", self._symbols, 0, (0, 0, 0))
        return bytes(encode([register]))

    def answers(self, said: dict[int, bytearray]) -> dict[int, bytes]:
        frames = {}
        for link, frame in said.items():
            if link == _CLIENT:
                for message in self._to_client.decode(_payload(frame)):
                    if isinstance(message, ResultsReady):
                        self.n_ready += len(message.results)
                continue
            answers: list[Message] = []
            for message in self._to_worker.decode(_payload(frame)):
                match message:
                    case RunTasks():
                        answers.append(self._finished(message))
                    case GiveBack():  # it has nothing that is not finished
                        empty = array("Q").tobytes()
                        answers.append(TasksGivenBack(empty, empty, True))
            if answers:
                frames[link] = bytes(encode(answers))
        return frames

    def _finished(self, message: RunTasks) -> TasksFinished:
        return TasksFinished(
            [FinishedTask(task.task, task.attempt, 0, 0, _DURATION_US, self._result) for task in message.tasks]
        )


def _payload(frame: bytearray) -> memoryview:
    return memoryview(frame)[HEADER_BYTES:]


def _no_number(reference: Reference) -> NoReturn:
    raise AssertionError(f"a bag takes no futures: {reference!r}")
