"""Performs what the worker core decides.

One turn of the loop takes everything that has happened, steps the core until nothing more follows from it here (small
built-ins run in between), and sends the server one frame.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from loom.core.worker import WorkerCore
from loom.core.worker_events import (
    CheckpointDone,
    Condition,
    Done,
    Drain,
    Drop,
    Failed,
    Fetch,
    Fetched,
    FetchFailed,
    FromServer,
    HangUp,
    Leave,
    OverMemory,
    ReadBackDone,
    Relay,
    RunInline,
    SaveObject,
    ServerLost,
    Spoilt,
    StartTrace,
    Stop,
    TakePiece,
    TasksDone,
    ToServer,
    WorkerEffect,
    WorkerEvent,
)
from loom.core.worker_tasks import KillExecutor, ReadBack, RestartExecutor, RunOnExecutor, RunProgram, StopProgram, Task
from loom.data.base import DataObject
from loom.data.buffers import Segment
from loom.data.pack import rebuild
from loom.errors import ConnectError, KeyRefused, LoomError, VersionMismatch
from loom.executors.memory import MemoryWatch
from loom.executors.orphans import Orphans
from loom.executors.programs import ProgramRunner
from loom.limits import DRAIN_TIMEOUT_S, FETCH_IDLE_TIMEOUT_S, LINK_SILENCE_S, RECONNECT_PAUSE_MAX_S, RECONNECT_PAUSE_S
from loom.messages import Message, RegisterWorker, RelayPiece, ServerToWorker, StopWorker, WorkerAccepted, WorkerLeaves
from loom.net.link import SIGNS_OF_LIFE, Link, connect
from loom.net.objects import ObjectFetcher, ObjectServer
from loom.net.places import Place
from loom.net.serving import Serving
from loom.net.sockets import address_text, is_loopback
from loom.net.trust import Trust
from loom.plugins.chosen import Plugins
from loom.resources import MEM
from loom.tasktypes.registry import TASK_TYPES
from loom.wire.codec import Decoder
from loom.wire.tickets import ALL_SESSIONS
from loom.worker.budget import choose_budget
from loom.worker.checkpoints import CheckpointWriter
from loom.worker.disk import DiskWatch
from loom.worker.executors import ExecutorPool
from loom.worker.hardware import Hardware
from loom.worker.inline import InlineRunner, done_of
from loom.worker.landing import FileLanding
from loom.worker.pieces import PieceLanding
from loom.worker.relay import RelaySender
from loom.worker.spill import Spiller
from loom.worker.store import Store
from loom.worker.tracing import WorkerTrace
from loom.worker.workdir import WorkDirectory

_log = logging.getLogger(__name__)

# Tasks and objects come and go by the thousand and hold no cycles: looking for some every 700 allocations is wasted.
_GC_THRESHOLDS: Final = (100_000, 50, 100)
_NO_PLUGINS: Final = Plugins()
_CHOSEN_HERE: Final = Serving()
_SAY_AGAIN_S: Final = 60.0  # between two lines that say that the server is still not there
_TURN_S: Final = 0.005  # built-ins run in one turn before sockets are looked at again
_SIGNAL_S: Final = 0.5  # between the end of a task by SIGTERM and our own, where both come from the same hand
_LEAVE_S: Final = 5.0  # how long after the end of a drain the process may still be there, whatever keeps it


class WorkerShell:
    """`run` serves one server after the other until it is told to stop.

    `plugins` are loaded by the executors, `own_types` are the symbols of the task types that they define;
    `memory_bytes` is what objects may take in memory (None: a part of what there is). `name` is for people, host:pid
    where it is empty. Told by the server to leave, the worker drains for at most `drain_timeout_s`. It ends when there
    was no server for `lost_timeout_s`. `serving`: where others fetch its objects.
    """

    def __init__(
        self,
        trust: Trust,
        hardware: Hardware,
        directory: WorkDirectory,
        plugins: Plugins = _NO_PLUGINS,
        own_types: Sequence[str] = (),
        memory_bytes: int | None = None,
        name: str = "",
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        lost_timeout_s: float = math.inf,
        serving: Serving = _CHOSEN_HERE,
    ) -> None:
        self._trust = trust
        self._name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._drain_timeout_s = drain_timeout_s
        self._lost_timeout_s = lost_timeout_s
        self._serving = serving
        self._hardware = hardware
        self._extras = list(hardware.extras.items())
        self._directory = directory
        self._plugins = plugins
        places: dict[str, str] = {symbol: kind.place for symbol, kind in TASK_TYPES.items()}
        places.update(dict.fromkeys(own_types, "executor"))
        self._symbols = sorted(places)
        self._core = WorkerCore(hardware.cpus, places, hardware.extras)
        self._budget = choose_budget(memory_bytes, directory.path)
        self._disks = DiskWatch(self._on_condition)
        self._store = Store(directory.store, self._budget, directory.spill, self._disks.hit)
        self._spiller = Spiller(self._budget, self._store, directory.on_disk, self._on_condition)
        self._trace = WorkerTrace(self._core.held)
        self._built_ins = InlineRunner(self._store)
        self._pieces = PieceLanding(self._store)
        self._decoder = Decoder(ServerToWorker)
        self._link: Link | None = None
        self._incarnation: int | None = None  # of the server, once it has accepted us
        self._lost = asyncio.Event()
        self._stopping = asyncio.Event()
        self._events: list[WorkerEvent] = []
        self._done: list[Done] = []
        self._outbox: list[Message] = []
        self._turn_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None  # the deadline that it is for
        self._relays = RelaySender()
        self._fault: Exception | None = None
        self._before = (0, 0, 0)  # the server that accepted us last, its incarnation, and which worker we were there
        self._gone = ""  # why there is no link any more
        self._listening: tuple[str, int, str] | None = None  # where objects are served: address, port, handover socket
        self._leave_at_s: float | None = None  # when the time limit ends, if there is one
        self._drain_until_s = math.inf
        self._drain_by_s: float | None = None  # it is to drain until then as soon as the server is back

    async def run(self, place: Place) -> None:
        """Serve the server at that place until stopped; LoomError where the key or version is refused, where there was
        no server for too long, or after a fault of our own.
        """
        loop = asyncio.get_running_loop()
        self._objects = ObjectServer(self._trust, self._store.lookup)
        self._fetcher = ObjectFetcher(
            self._trust, partial(FileLanding, self._store), self._store.adopt, host_id=self._serving.host_id
        )
        self._orphans = Orphans(loop)
        self._memory = MemoryWatch(loop, lambda task, attempt, peak: self._post(OverMemory(task, attempt, peak)))
        self._programs = ProgramRunner(
            self._directory.runs, loop, self._orphans, self._on_input_changed, self._directory.spill_runs
        )
        self._executors = ExecutorPool(
            self._hardware,
            self._store,
            self._directory.store,
            self._orphans,
            self._post,
            self._core.expects,
            self._trace,
            self._plugins,
            self._memory,
            self._directory.spill,
        )
        self._checkpoints = CheckpointWriter(self._store, self._trace, self._on_checkpoint)
        self._executors.start()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        try:
            while not self._stopping.is_set() and not self._draining:
                link = await self._connect(place)
                if link is None:
                    break
                await self._serve(link)
        finally:
            self._lost.set()
            self._post(Drain(time.monotonic()))  # nothing is to start any more
            self._turn()
            self._executors.stop()
            self._programs.close()
            self._orphans.close()
            await self._checkpoints.finish()
            self._trace.stop()
            self._fetcher.close()
            self._objects.close()
            self._memory.close()
            self._spiller.close()
            self._disks.close()
        if self._fault is not None:
            raise LoomError(f"internal error, the worker ends so that others take its tasks: {self._fault!r}")

    def stop(self) -> None:
        self._stopping.set()
        self._lost.set()

    def leave_by(self, leave_at_s: float, drain_timeout_s: float) -> None:
        """Tell servers that this worker has to be gone by then (monotonic), and drain when only that time is left."""
        self._leave_at_s = leave_at_s
        drain_in_s = leave_at_s - drain_timeout_s - time.monotonic()
        asyncio.get_running_loop().call_later(drain_in_s, self.drain, drain_timeout_s)

    def drain(self, timeout_s: float) -> None:
        """Start nothing any more, hand over what is here, and leave; what runs may go on for `timeout_s`.

        Without time, or without a server for which anything is kept here, this is `stop`. One that is away is waited
        for.
        """
        keeps = self._core.keeps_until is not None and (self._core.held or self._core.tasks)
        if self._incarnation is None and timeout_s and keeps:
            self._drain_when_back(timeout_s)
            return
        if timeout_s == 0 or self._incarnation is None or self._stopping.is_set():
            self.stop()
            return
        until_s = time.monotonic() + timeout_s
        if until_s < self._drain_until_s:
            self._drain_until_s = until_s
            asyncio.get_running_loop().call_later(timeout_s + _LEAVE_S / 2, self.stop)
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _LEAVE_S)  # nobody handles its signal: it kills
            self._post(Drain(until_s))
            self._turn()
        n_tasks, left_s = len(self._core.tasks), self._drain_until_s - time.monotonic()
        tasks = "1 task still runs" if n_tasks == 1 else f"{n_tasks} tasks still run"
        _log.info("draining: %s, leaving in at most %.3g s", tasks, left_s)

    def _drain_when_back(self, timeout_s: float) -> None:
        """What is here is handed over when the server comes back within this time, and goes with the worker if not."""

        def give_up() -> None:
            if self._incarnation is None:
                _log.warning("leaving without a server: %s are lost", self._what_is_here())
            self.stop()

        if self._drain_by_s is None:
            self._drain_by_s = time.monotonic() + timeout_s
            asyncio.get_running_loop().call_later(timeout_s, give_up)
            _log.info(
                "waiting up to %.3g s for the server, to hand over %s; a second signal ends it at once",
                timeout_s,
                self._what_is_here(),
            )

    @property
    def _draining(self) -> bool:
        return self._drain_until_s < math.inf

    async def _connect(self, place: Place) -> Link | None:
        """Try until the server is there or the worker is stopped."""
        pause_s = RECONNECT_PAUSE_S
        said, say_again_s = "", 0.0
        give_up_s = time.monotonic() + self._lost_timeout_s
        while not self._stopping.is_set():
            try:
                host, port = await place.find()
                return await connect(host, port, "worker", self._trust, self._decoder, self)
            except ConnectError as error:
                refused = isinstance(error, KeyRefused | VersionMismatch)  # somebody else's server, where ours was
                if isinstance(error, VersionMismatch) or (
                    refused and self._core.keeps_until is None and not place.may_move
                ):
                    raise
                if time.monotonic() > give_up_s:
                    raise LoomError(f"no server for {self._lost_timeout_s:g} s: {error}") from None
                if str(error) != said or time.monotonic() > say_again_s:
                    said, say_again_s = str(error), time.monotonic() + _SAY_AGAIN_S
                    level = logging.WARNING if refused else logging.INFO
                    _log.log(level, "%s; trying again until %s is there", error, "ours" if refused else "it")
            try:
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            except TimeoutError:
                pause_s = min(2 * pause_s, RECONNECT_PAUSE_MAX_S)
        return None

    async def _serve(self, link: Link) -> None:
        self._link = link
        self._incarnation = None
        self._gone = ""
        self._lost.clear()
        self._stay_alive(link, LINK_SILENCE_S)
        if link.closed or self._stopping.is_set():  # before the link was ours, so nobody has heard of it
            self._lost.set()
        own_host, port, handover = await self._listen(self._serving.listens_at(link.own_host))
        cpus, extras = self._hardware.cpus, self._extras
        left_ms = 0 if self._leave_at_s is None else max(1, round((self._leave_at_s - time.monotonic()) * 1000))
        own = (self._name, cpus, extras, own_host, port, handover, self._symbols)
        link.send([RegisterWorker(*own, left_ms, self._before)])
        _log.info(
            "connected to %s%s, %d cpus, objects at %s, directory %s",
            link.peer,
            ", encrypted" if link.encrypted else "",
            cpus,
            address_text((own_host, port)),
            self._directory.path,
        )
        if is_loopback(own_host) and link.encrypted and self._trust.encryption == "remote":
            _log.info(
                "the server is reached through a tunnel, and others cannot reach this worker: its objects go through "
                "the server (--interface or --advertise: where others do reach it)"
            )
        await self._lost.wait()
        if self._stopping.is_set() and self._fault is None:  # what runs here is no reason for its end
            link.send([WorkerLeaves()])
        link.close("the worker stops")
        self._link = self._incarnation = None
        self._pieces.clear()
        self._relays.clear()
        self._outbox.clear()
        gone = "" if self._stopping.is_set() else self._gone
        self._post(ServerLost())
        self._turn()
        self._trace.stop()
        self._outbox.clear()  # nothing of this registration may be said in the next one
        keeps_until = self._core.keeps_until
        if keeps_until is None:
            self._objects.close()
            self._listening = None
            kept = ""
        else:
            kept = f"; keeping {self._what_is_here()} for up to {keeps_until - time.monotonic():.0f} s"
        if gone:
            _log.warning("the link to the server is gone: %s%s", gone, kept)

    async def _listen(self, host: str) -> tuple[str, int, str]:
        """Serve objects at this address: where that is done already, others go on fetching. What they are told."""
        if self._listening is None or self._listening[0] != host:
            if self._listening is not None:
                self._objects.close()
            port, handover = await self._objects.start(host, self._serving.port, self._serving.host_id)
            self._listening = host, port, handover
        _, port, handover = self._listening
        return *self._serving.told(host, port), handover

    def _what_is_here(self) -> str:
        return f"{_counted(len(self._core.held), 'object')}, {_counted(len(self._core.tasks), 'task')}"

    # -- The link -----------------------------------------------------------------------------------------------------

    def on_messages(self, link: Link, messages: list[Message]) -> None:
        if self._incarnation is None:
            for message in messages:
                if isinstance(message, WorkerAccepted):
                    self._incarnation = message.incarnation
                    if self._core.keeps_until is not None:
                        if message.keeps:
                            _log.info("the server is back: %s offered", self._what_is_here())
                        else:
                            story = "a server is there that takes nothing up (another journal, or none): dropping %s"
                            _log.warning(story, self._what_is_here())
                    self._before = message.server, message.incarnation, message.worker
                    self._objects.belong_to(message.server)
                    self._fetcher.show(ALL_SESSIONS, self._trust.ticket(message.server, ALL_SESSIONS))
                    self._stay_alive(link, message.silence_ms / 1000)
        if any(isinstance(message, StopWorker) for message in messages):
            self._stopping.set()  # what follows is no news: the server goes, too
        self._post(FromServer(messages))
        if self._drain_by_s is not None and self._incarnation is not None:
            left_s, self._drain_by_s = self._drain_by_s - time.monotonic(), None
            self.drain(max(0.0, left_s))

    def _stay_alive(self, link: Link, silence_s: float) -> None:
        link.keep_alive(silence_s / SIGNS_OF_LIFE, silence_s)
        self._fetcher.idle_timeout_s = min(silence_s, FETCH_IDLE_TIMEOUT_S)

    def on_closed(self, link: Link, reason: str) -> None:
        if link is self._link:
            self._gone = reason
            self._lost.set()

    def on_full(self, link: Link) -> None:
        """Reports are few and bounded by what was assigned: they are not held back."""

    def on_drained(self, link: Link) -> None:
        """See on_full."""

    # -- The turn -----------------------------------------------------------------------------------------------------

    def _post(self, event: WorkerEvent | Done) -> None:
        if isinstance(event, Done):
            self._done.append(event)
        else:
            self._close_done()
            self._events.append(event)
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _close_done(self) -> None:
        """Finished tasks go to the core in batches, in order with the other events."""
        if self._done:
            self._events.append(TasksDone(self._done))
            self._done = []

    def _turn(self) -> None:
        try:
            self._take_turn()
        except Exception as error:  # our fault: a worker in an unknown state must not keep the tasks it was given
            _log.exception("the worker's turn failed")
            self._fault = error
            self.stop()

    def _take_turn(self) -> None:
        now = time.monotonic()
        until = now + _TURN_S
        self._turn_due = True  # what is posted from here on is handled below
        self._close_done()
        while True:
            events, self._events = self._events, []
            for effect in self._core.step(events, now):
                self._perform(effect)
            self._close_done()
            if not self._events:
                self._turn_due = False
                break
            now = time.monotonic()
            if now > until:
                asyncio.get_running_loop().call_soon(self._turn)
                break
        if self._outbox and self._link is not None:
            self._trace.flush()
            self._link.send(self._outbox)
            self._outbox = []
        self._set_timer()
        self._spiller.look()

    def _set_timer(self) -> None:
        deadline = self._core.next_deadline()
        if self._timer is not None:
            if deadline == self._timer_at:
                return
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline is not None:
            delay_s = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._turn_due:
            self._turn()

    def _perform(self, effect: WorkerEffect) -> None:
        match effect:
            case RunInline():
                for task in effect.tasks:
                    outcome = self._built_ins.run(task)
                    if self._trace.on:
                        self._trace.ran_inline(task, outcome)
                    if type(outcome) is Done:
                        self._done.append(outcome)
                    else:
                        self._post(outcome)
            case RunOnExecutor():
                self._executors.send(effect.executor, effect.tasks)
            case ToServer():
                self._outbox += effect.messages
            case Drop():
                for object_id in effect.objects:
                    self._store.drop(object_id)
                    self._pieces.drop(object_id)
                    if self._relays.drop(object_id):
                        self._refuse_relay(object_id)
            case RunProgram():
                self._start_program(effect.task)
            case Fetch():
                if self._trace.on:
                    self._trace.fetching(effect.peer.worker, effect.objects)
                self._fetcher.fetch(effect.peer, effect.objects, self._on_object)
            case ReadBack():
                self._post(ReadBackDone(effect.executor, self._executors.read_back(effect.executor, effect.count)))
            case KillExecutor():
                self._executors.kill_if_running(effect.executor, effect.run, effect.after_s, effect.why)
            case RestartExecutor():
                self._executors.restart(effect.executor, effect.threads, effect.gpus)
            case StopProgram():
                self._programs.stop(effect.task, effect.why)
            case Relay():
                self._relay(effect)
            case TakePiece():
                self._take_piece(effect)
            case HangUp():
                if self._link is not None:
                    _log.warning("the server broke the protocol: %s", effect.reason)
                    self._link.abort(effect.reason)
            case SaveObject():
                self._checkpoints.write(effect.object, effect.path)
            case StartTrace():
                own, incarnation = self._hardware, self._incarnation or 0
                path = os.fsdecode(effect.path)
                self._trace.start(path, self._core.id, self._name, own.cpus, self._extras, incarnation)
            case Leave():
                _log.info("the server asks this worker to leave")
                self.drain(self._drain_timeout_s)
            case Stop():
                if not self._lost.is_set():
                    _log.info(self._why_it_leaves())
                self.stop()

    def _why_it_leaves(self) -> str:
        if not self._draining:
            return "stopping: the server asked for it"
        if time.monotonic() < self._drain_until_s:
            return "leaving: the drain is over"
        return "leaving: the time for the drain is over, what still ran is run again elsewhere"

    def _on_condition(self) -> None:
        self._executors.set_crowded(self._budget.over)
        self._post(Condition(self._budget.over, self._disks.full))

    # -- Programs -----------------------------------------------------------------------------------------------------

    def _start_program(self, task: Task) -> None:
        def done(_task: int, value: DataObject | None, error: str, duration_us: int, terminated: bool) -> None:
            if not terminated:
                self._on_program_done(task, value, error, duration_us)
            else:  # who signals all processes of a job or service reaches us, too, and maybe last
                asyncio.get_running_loop().call_later(_SIGNAL_S, self._on_terminated, task, error, duration_us)

        try:
            inputs = [self._store.get(i) for i in task.inputs]
        except (ValueError, OSError) as error:  # what its maker sent is no object, or cannot be read
            self._post(Failed(task.id, task.attempt, f"an input of the task is damaged: {error}"))
            return
        variables = self._hardware.variables(task.cpus, task.gpus)
        cores = self._hardware.core_ids(task.cores)
        if not cores:
            self._hardware.leave_home()
        elif self._hardware.stay_at_home():
            cores = ()  # the program has them from us
        self._programs.start(task.id, task.config, inputs, done, variables, cores)
        if task.kind.extras and MEM in (amounts := dict(task.kind.extras)):
            pid = self._programs.pid_of(task.id)
            if pid is not None:
                self._memory.begin((task.id, task.attempt), amounts[MEM], pid)

    def _on_program_done(self, task: Task, value: DataObject | None, error: str, duration_us: int) -> None:
        self._memory.end((task.id, task.attempt))
        if value is not None and self._core.expects(task.id, task.attempt):
            try:
                self._store.put(task.id, value)
            except OSError as problem:
                error = f"the result could not be stored: {self._store.error_text(problem)}"
            else:
                done = done_of(task, value, duration_us)
                if self._trace.on:
                    self._trace.program_ended(task, duration_us, done.size_bytes, "")
                self._post(done)
                return
        error = error or "cancelled"
        self._store.heard(error)
        if self._trace.on:
            self._trace.program_ended(task, duration_us, 0, error)
        self._post(Failed(task.id, task.attempt, error))

    def _on_terminated(self, task: Task, error: str, duration_us: int) -> None:
        """By a SIGTERM that was not ours: meant for the task, or for us."""
        if not (self._draining or self._stopping.is_set()):
            self._on_program_done(task, None, error, duration_us)
            return
        self._memory.end((task.id, task.attempt))
        if self._trace.on:
            self._trace.program_ended(task, duration_us, 0, "interrupted")
        self._post(Failed(task.id, task.attempt, "interrupted", True))

    def _on_input_changed(self, task_id: int, position: int) -> None:
        """A program has damaged an object of ours: whoever needs it must not get it from here."""
        task = self._core.tasks.get(task_id)
        if task is not None:
            self._post(Spoilt(task.inputs[position]))

    def _on_checkpoint(self, object_id: int, error: str) -> None:
        self._post(CheckpointDone(object_id, error))

    # -- Objects from other workers -----------------------------------------------------------------------------------

    def _on_object(
        self, object_id: int, found: bytes | tuple[bytes, list[Segment]] | None, reason: str, unreachable: bool
    ) -> None:
        if found is None:
            _log.info("object %#x could not be fetched: %s", object_id, reason)
            if self._trace.on:
                self._trace.not_fetched(object_id)
            self._post(FetchFailed(object_id, unreachable))
            return
        try:
            if isinstance(found, bytes):
                size_bytes = len(found)
                self._store.put_packed(object_id, found)
            else:
                value = rebuild(*found)
                size_bytes = value.size()
                self._store.put(object_id, value)
        except (ValueError, OSError) as error:
            _log.warning("object %#x arrived and could not be kept: %s", object_id, error)
            self._post(FetchFailed(object_id, False))
        else:
            if self._trace.on:
                self._trace.fetched(object_id, size_bytes)
            self._post(Fetched(object_id, size_bytes))

    def _take_piece(self, piece: TakePiece) -> None:
        fetching = self._core.fetching.get(piece.object)
        try:
            found = self._pieces.take(piece, fetching.size_bytes if fetching is not None else 0)
        except OSError as error:
            self._on_object(piece.object, None, self._store.error_text(error), False)
        else:
            if found is not None:
                self._on_object(piece.object, found, "", False)

    def _relay(self, relay: Relay) -> None:
        link = self._link
        if link is None:
            return
        if relay.go_on:
            self._relays.go_on(relay.object, relay.pieces)
            return
        found = self._store.lookup(relay.object)
        if found is None:
            self._refuse_relay(relay.object)
        else:
            self._relays.start(link, relay.object, found, relay.pieces)

    def _refuse_relay(self, object_id: int) -> None:
        """In order with what else is said of the object, so that the server does not take this for later news."""
        self._outbox.append(RelayPiece(object_id, b"", b"", True, "the worker does not have the object"))


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"
