"""A simulated worker process: performs what the real WorkerCore decides."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from loom.core.check import check_worker
from loom.core.worker import WorkerCore
from loom.core.worker_events import (
    CheckpointDone,
    Condition,
    Done,
    Drain,
    Drop,
    ExecutorLost,
    ExecutorReady,
    Failed,
    Fetch,
    Fetched,
    FetchFailed,
    FromServer,
    Leave,
    NotInline,
    NotRun,
    NotSent,
    ReadBackDone,
    Redirected,
    Relay,
    RunInline,
    SaveObject,
    ServerLost,
    Spoilt,
    StillRunning,
    Stop,
    TakePiece,
    TasksDone,
    ToServer,
    WorkerEffect,
    WorkerEvent,
)
from loom.core.worker_tasks import (
    KillExecutor,
    ReadBack,
    RestartExecutor,
    Run,
    RunOnExecutor,
    RunProgram,
    StopProgram,
    Task,
)
from loom.limits import INLINE_RESULT_BYTES
from loom.messages import RESULT, Message, PeerAddress, PlanChunk, RegisterWorker, RelayPiece, WorkerAccepted
from loom.sim.clock import Timer
from loom.sim.executors import Job, Lost, SimExecutor
from loom.sim.network import End
from loom.sim.tasks import BAD_PATH, DISK_FULL, PLACES, Failure, SimObject, run, spec_of, unpack

if TYPE_CHECKING:
    from loom.sim.world import World

_SYMBOLS: Final = sorted(PLACES)
_MOST_STEPS: Final = 1000  # in one turn
_PADDING: Final = bytes(2000)  # of a relayed piece: so that links become full


class _Stream:
    """An object that is sent through the server: the pieces to come, and how many may be sent besides the last."""

    def __init__(self, pieces: list[bytes], n_left: int) -> None:
        self.pieces = pieces
        self.n_left = n_left
        self.waits = False


class SimWorker:
    """`number` is the process, and the port where its objects are; every registration gives it another id.

    It leaves after `lifetime_s`; its functions run at `speed`.
    """

    def __init__(
        self, world: World, number: int, cpus: int, lifetime_s: float | None = None, speed: float = 1.0
    ) -> None:
        self.world = world
        self.number = number
        self.cpus = cpus
        self.core = WorkerCore(cpus, PLACES, dict(world.extras))
        self.store: dict[int, SimObject] = {}
        self.end: End | None = None
        self.alive = True
        self.frozen = False
        self.name = f"w{number}"
        self.drain_timeout_s = 1.0  # when the server says that it is to leave
        self._before = (0, 0, 0)  # server, its incarnation, and which worker this was there
        self._pieces: dict[int, bytes] = {}
        self.relays: dict[int, _Stream] = {}
        self.executors = [
            SimExecutor(world.clock, world.rng, speed, self._on_results(i), self._on_executor_lost(i))
            for i in range(cpus + 1)
        ]
        self._programs: dict[Run, Timer] = {}
        self._events: list[WorkerEvent] = []
        self._outbox: list[Message] = []
        self._turn_due = False
        self._timer: Timer | None = None
        self._ends_at: float | None = None
        if lifetime_s is not None:
            self._ends_at = world.clock.now + lifetime_s
            world.clock.after(lifetime_s * 0.8, partial(self.drain, lifetime_s * 0.2))
        self.connect()

    def __repr__(self) -> str:
        return f"worker process {self.number}"

    # -- The link -----------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        if self.alive and not self.world.server.alive:
            self.world.clock.after(self.world.rng.random() * self.world.rng.choice((0.02, 0.5)), self.connect)
        elif self.alive:
            self.end = self.world.connect("worker", self)
            extras = list(self.world.extras)
            left_ms = max(1, int(1000 * (self._ends_at - self.world.clock.now))) if self._ends_at is not None else 0
            self.end.send(
                [RegisterWorker(self.name, self.cpus, extras, "host", self.number, "", _SYMBOLS, left_ms, self._before)]
            )

    def on_messages(self, end: End, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, WorkerAccepted):
                self._before = message.server, message.incarnation, message.worker
        self.post(FromServer(messages))

    def on_broken(self, end: End) -> None:
        self.end = None
        self._outbox.clear()
        self.relays.clear()
        self.post(ServerLost())
        self._turn()
        self.world.clock.after(self.world.rng.random() * self.world.rng.choice((0.02, 0.5)), self.connect)

    def on_full(self, end: End) -> None:
        """Reports are not held back."""

    def on_drained(self, end: End) -> None:
        """See on_full."""

    def freeze(self, duration_s: float, silence_s: float) -> None:
        """The process is stopped for some time; after `silence_s` the server gives its link up."""
        self.frozen = True
        end = self.end

        def give_up() -> None:
            if end is not None and end is self.end:
                end.link.far.ended()

        def go_on() -> None:
            self.frozen = False
            if not self.alive:
                return
            if duration_s > silence_s and end is not None and end is self.end:
                end.link.near.ended()
            self._turn()

        if duration_s > silence_s:
            self.world.clock.after(silence_s, give_up)
        self.world.clock.after(duration_s, go_on)

    def drain(self, timeout_s: float) -> None:
        """It is told to leave; whatever becomes of that, some seconds later it is gone."""
        self.post(Drain(self.world.clock.now + timeout_s))
        self.world.clock.after(timeout_s + 5.0, self.die)

    def press(self) -> None:
        """It runs out of memory or room on its disk, for a while."""
        rng = self.world.rng
        self.post(Condition(rng.random() < 0.7, rng.random() < 0.5))
        self.world.clock.after(rng.random() * 2, partial(self._post_alive, Condition(False, False)))

    def die(self) -> None:
        """The process is killed: it says nothing any more."""
        self.alive = False
        if self.end is not None:
            self.end.abandon()
            self.end.link.break_off()
            self.end = None

    def spoil_something(self) -> None:
        """An object in the store is damaged; a program notices."""
        if self.store:
            self.post(Spoilt(self.world.rng.choice(sorted(self.store))))

    # -- The turn -----------------------------------------------------------------------------------------------------

    def post(self, event: WorkerEvent) -> None:
        self._events.append(event)
        if not self._turn_due:
            self._turn_due = True
            self.world.clock.after(self.world.turn_delay_s(), self._turn)

    def _turn(self) -> None:
        """Step until nothing more follows from it here, then send one frame."""
        if not self.alive or self.frozen:
            return
        self._turn_due = True  # what is posted from here on is handled below
        for n_steps in itertools.count(1):
            assert n_steps < _MOST_STEPS, f"{self} goes round in circles: {self._events}"
            events, self._events = self._events, []
            self.world.trace(self, events)
            effects = self.core.step(events, self.world.clock.now)
            self.world.trace(self, effects)
            check_worker(self.core)
            for effect in effects:
                self._perform(effect)
            if not self._events:
                break
        self._turn_due = False
        if self._outbox and self.end is not None:
            self.end.send(self._outbox)
        self._outbox = []
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.core.next_deadline()
        if deadline is not None:
            self._timer = self.world.clock.at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        if not self._turn_due:
            self._turn()

    def _perform(self, effect: WorkerEffect) -> None:
        match effect:
            case RunInline():
                self._run_inline(effect.tasks)
            case RunOnExecutor():
                jobs = [(task, self._inputs_there(task)) for task in effect.tasks]
                left = self.executors[effect.executor].give(jobs)
                if left:
                    self.post(NotSent(effect.executor, [(task.id, task.attempt) for task, _ in left]))
            case ToServer():
                self._outbox += effect.messages
            case Drop():
                for object_id in effect.objects:
                    self.store.pop(object_id, None)
                    self._pieces.pop(object_id, None)
                    if self.relays.pop(object_id, None) is not None:
                        self._refuse_relay(object_id)
            case RunProgram():
                self._start_program(effect.task)
            case Fetch():
                self._fetch(effect)
            case ReadBack():
                taken = self.executors[effect.executor].read_back(effect.count)
                self.post(ReadBackDone(effect.executor, [(task.id, task.attempt) for task in taken]))
            case KillExecutor():
                executor = self.executors[effect.executor]
                running = executor.running
                if running is None or (running.id, running.attempt) != effect.run:
                    pass
                elif executor.ran_s < effect.after_s:
                    self.post(StillRunning(effect.executor, effect.run, effect.after_s - executor.ran_s))
                else:
                    executor.kill(effect.why)
            case StopProgram():
                timer = self._programs.pop((effect.task, effect.attempt), None)
                if timer is not None:
                    timer.cancel()
                self.post(Failed(effect.task, effect.attempt, effect.why))
            case TakePiece():
                self._take_piece(effect)
            case SaveObject():
                assert effect.object in self.store, f"{self} is to save {effect.object:#x}, which it does not have"
                self.world.clock.after(self.world.rng.random() * 0.2, partial(self._save, effect))
            case RestartExecutor():
                executor = self.executors[effect.executor]
                assert executor.is_idle, f"{self} starts executor {effect.executor} again while it has something to do"
            case Relay():
                self._relay(effect)
            case Leave():
                self.drain(self.drain_timeout_s)
            case Stop():
                self.die()

    # -- Running ------------------------------------------------------------------------------------------------------

    def _inputs(self, task: Task) -> list[SimObject]:
        missing = [f"{i:#x}" for i in task.inputs if i not in self.store]
        assert not missing, f"{self} starts {task} without {missing}"
        return [self.store[i] for i in task.inputs]

    def _inputs_there(self, task: Task) -> list[SimObject | None]:
        """Without what those make that are before it at its executor."""
        before = list(task.executor.queue) if task.executor is not None else []
        before = before[: before.index(task)]
        inputs = [self.store.get(i) for i in task.inputs]
        for object_id, found in zip(task.inputs, inputs, strict=True):
            follows = any(other.id == object_id for other in before)
            assert found is not None or follows, f"{self} starts {task} without {object_id:#x}"
        return inputs

    def _outcome_there(self, index: int, task: Task, given: list[SimObject | None]) -> WorkerEvent:
        """Of a task that may have followed others: they may have failed, and what they made may be kept no longer."""
        inputs = [found or self.store.get(i) for i, found in zip(task.inputs, given, strict=True)]
        there = [found for found in inputs if found is not None]
        forgotten = None in given and self.world.rng.random() < self.world.chances.not_inline
        if self.core.expects(task.id, task.attempt) and (len(there) < len(inputs) or forgotten):
            return NotRun(index, [(task.id, task.attempt)])
        return self._outcome(task, there)

    def _run_inline(self, tasks: list[Task]) -> None:
        """Results are stored now, and told after the time it took."""
        total_us = 0
        for task in tasks:
            if self.world.rng.random() < self.world.chances.not_inline:
                self.post(NotInline(task.id, task.attempt))
                continue
            total_us += spec_of(task.kind.symbol, task.config).duration_us
            event = self._outcome(task, self._inputs(task))
            if self.world.chances.slow_loop:
                self.world.clock.after(total_us / 1e6, partial(self._post_alive, event))
            else:
                self.post(event)

    def _post_alive(self, event: WorkerEvent) -> None:
        if self.alive:
            self.post(event)

    def _outcome(self, task: Task, inputs: list[SimObject]) -> WorkerEvent:
        """Store a task's object, unless nobody wants it any more, and say what came of the task."""
        if not self.core.expects(task.id, task.attempt):
            return Failed(task.id, task.attempt, "cancelled")
        symbol = task.kind.symbol
        spec = spec_of(symbol, task.config)
        outcome = run(symbol, task.config, inputs, self.world.count_run(task.id))
        if isinstance(outcome, Failure):
            return Failed(task.id, task.attempt, outcome.error)
        if isinstance(outcome, PlanChunk):
            return Redirected(task.id, task.attempt, outcome)
        self.store[task.id] = outcome
        inline = task.flags & RESULT and outcome.size_bytes <= INLINE_RESULT_BYTES
        packed = outcome.packed() if inline else None
        return TasksDone([Done(task.id, task.attempt, outcome.size_bytes, outcome.length, spec.duration_us, packed)])

    def _start_program(self, task: Task) -> None:
        inputs = self._inputs(task)
        spec = spec_of(task.kind.symbol, task.config)

        def end() -> None:
            if self._programs.pop((task.id, task.attempt), None) is not None and self.alive:
                self.post(self._outcome(task, inputs))

        self._programs[task.id, task.attempt] = self.world.clock.after(spec.duration_us / 1e6, end)

    def _on_results(self, index: int) -> Callable[[list[Job]], None]:
        def on_results(jobs: list[Job]) -> None:
            if self.alive:
                for task, inputs in jobs:
                    self.post(self._outcome_there(index, task, inputs))

        return on_results

    def _on_executor_lost(self, index: int) -> Callable[[Lost], None]:
        def on_lost(lost: Lost) -> None:
            if self.alive:
                self.post(ExecutorLost(index, lost.running, lost.story))
                self.world.clock.after(self.world.rng.random() * 0.1, restart)

        def restart() -> None:
            self.executors[index].restart()
            self._post_alive(ExecutorReady(index))

        return on_lost

    # -- Objects ------------------------------------------------------------------------------------------------------

    def _fetch(self, fetch: Fetch) -> None:
        for object_id in fetch.objects:
            self.world.transfer(fetch.peer, object_id, self._on_object(object_id), self.number)

    def _take_piece(self, piece: TakePiece) -> None:
        before = b"" if piece.first else self._pieces.pop(piece.object)
        self._pieces[piece.object] = before + piece.piece
        if piece.last:
            found = unpack(self._pieces.pop(piece.object))
            self.store[piece.object] = found
            self.post(Fetched(piece.object, found.size_bytes))

    def _on_object(self, object_id: int) -> Callable[[SimObject | None, bool], None]:
        def on_object(found: SimObject | None, unreachable: bool) -> None:
            if not self.alive:
                return
            if found is None:
                self.post(FetchFailed(object_id, unreachable))
            else:
                self.store[object_id] = found
                self.post(Fetched(object_id, found.size_bytes))

        return on_object

    def _save(self, effect: SaveObject) -> None:
        if not self.alive:
            return
        is_full = effect.path.startswith(BAD_PATH)
        if not is_full:
            self.world.saved.add(effect.path)
        self.post(CheckpointDone(effect.object, DISK_FULL if is_full else ""))

    def _relay(self, relay: Relay) -> None:
        """Send an object in a few pieces, with pauses."""
        if self.end is None:
            return
        if relay.go_on:
            stream = self.relays.get(relay.object)
            if stream is not None:
                stream.n_left += relay.pieces
                if stream.waits:
                    stream.waits = False
                    self._send_piece(relay.object, stream)
            return
        found = self.store.get(relay.object)
        if found is None:
            self._refuse_relay(relay.object)
            return
        assert relay.object not in self.relays, f"{self} is to send {relay.object:#x} twice at once"
        packed = found.packed()
        cuts = sorted(self.world.rng.randint(0, len(packed)) for _ in range(2))
        pieces = [packed[a:b] for a, b in zip([0, *cuts], [*cuts, len(packed)], strict=True)]
        stream = self.relays[relay.object] = _Stream(pieces, relay.pieces)
        self._send_piece(relay.object, stream)

    def _refuse_relay(self, object_id: int) -> None:
        self._outbox.append(RelayPiece(object_id, b"", b"", True, "the worker does not have the object"))

    def _send_piece(self, object_id: int, stream: _Stream) -> None:
        if self.end is None or self.relays.get(object_id) is not stream:  # dropped, or the link is gone
            return
        last = len(stream.pieces) == 1
        if not last and not stream.n_left:
            stream.waits = True
            return
        stream.n_left -= 1
        self.end.send([RelayPiece(object_id, _PADDING, stream.pieces.pop(0), last, "")])
        if last:
            del self.relays[object_id]
        else:
            self.world.clock.after(self.world.rng.random() * 0.01, partial(self._send_piece, object_id, stream))


def objects_of(worker: SimWorker, peer: PeerAddress, object_id: int) -> SimObject | None:
    """What a worker serves to whoever asks it for an object."""
    if not worker.alive or worker.frozen or worker.number != peer.port:
        return None
    return worker.store.get(object_id)
