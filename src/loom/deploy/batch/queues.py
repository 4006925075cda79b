"""The allocation queues of a server: one thread looks after all of them, beside the server's loop.

Without a journal they end with the server, and so do their jobs. With one both stay, and the next server goes on from
what this one has kept.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from loom.deploy.batch.options import QueueOptions, check_options
from loom.deploy.batch.questions import (
    AddQueue,
    Answer,
    ListQueues,
    PauseQueue,
    Queues,
    RemoveQueue,
    Said,
    ScaleQueue,
    decode_question,
    encode,
)
from loom.deploy.batch.queue import SYSTEMS, Here, KeptQueue, Queue
from loom.deploy.batch.system import check_commands
from loom.errors import DeployError, LoomError, LoomException
from loom.limits import MAX_QUESTION_BYTES
from loom.messages import Load
from loom.net.sockets import is_loopback

_log = logging.getLogger(__name__)

_TURN_S: Final = 1.0  # how often is looked what waits; not at all while there is no queue
_AGAIN_S: Final = 5.0  # before jobs are cancelled again where that has failed
_REMOVE_S: Final = 25.0  # how long who removes a queue waits for its jobs to be cancelled; Asker waits a little longer
_MOST_QUEUES: Final = 100

_state_decoder: Final = msgspec.json.Decoder(list[KeptQueue])


class BatchQueues:
    """The server's hook for allocation queues (`server.shell.AllocationQueues`).

    `key_file` is where the server has its key from. `stay`: the server has a journal.
    """

    def __init__(self, key_file: str | os.PathLike[str], *, stay: bool) -> None:
        self._key_file = os.path.abspath(key_file)
        self._stay = stay
        self._here: Here | None = None
        self._queues: dict[str, Queue] = {}
        self._lock = threading.Lock()  # of the dict, of what is kept, and of what questions change
        self._awake = threading.Condition(self._lock)
        self._woken = False
        self._closing = False
        self._cancel_at = 0.0
        self._thread = threading.Thread(target=self._run, name="loom-queues", daemon=True)

    # -- For the server -----------------------------------------------------------------------------------------------

    def start(
        self,
        kept: bytes,
        keep: Callable[[bytes], None],
        load: Callable[[], Load],
        retire: Callable[[list[str]], object],
    ) -> None:
        """Take up what an earlier server has kept. Nothing is done before `listens_at`."""
        self._keep = keep
        self._load = load
        self._retire = retire
        if kept:
            try:
                queues = _state_decoder.decode(kept)
            except msgspec.MsgspecError as error:
                raise LoomError(f"the allocation queues in the journal make no sense: {error}") from None
            for one in queues:
                self._queues[one.options.name] = Queue.kept(one, retire, self._on_changed)

    def listens_at(self, host: str, port: int) -> None:
        """Where jobs find the server."""
        self._here = Here(host, port, self._key_file)
        self._thread.start()

    def ask(self, question: bytes) -> bytes:
        """The answer; LoomError where it cannot be done."""
        return encode(self._answer(decode_question(question)))

    def close(self) -> None:
        """Jobs end, unless there is a journal."""
        with self._awake:
            self._closing = True
            self._awake.notify_all()
        if self._thread.ident is None:
            return
        self._thread.join()
        for queue in [] if self._stay else list(self._queues.values()):
            try:
                queue.cancel(at_once=True)
            except DeployError as error:
                _log.error("jobs of the queue %s may be left: %s", queue.options.name, error)
            queue.remove_files()

    # -- Questions ----------------------------------------------------------------------------------------------------

    def _answer(self, question: AddQueue | ListQueues | PauseQueue | ScaleQueue | RemoveQueue) -> Answer:
        match question:
            case AddQueue():
                return self._add(question)
            case ListQueues():
                with self._lock:
                    return Queues(tuple(queue.report() for queue in self._queues.values()))
            case PauseQueue():
                with self._awake:
                    self._named(question.name).paused = question.paused
                    self._wake()
            case ScaleQueue():
                with self._awake:
                    queue = self._named(question.name)
                    now = queue.options
                    numbers = question.min_workers, question.max_workers, question.idle_s
                    if question.max_workers:  # none at all is no queue, but for who scales down
                        check_options(replace(now, min_workers=numbers[0], max_workers=numbers[1], idle_s=numbers[2]))
                    queue.scale(*numbers)
                    self._wake()
            case RemoveQueue():
                return self._remove(question)
        self._on_changed()
        return Said()

    def _add(self, question: AddQueue) -> Said:
        options = question.options
        check_options(options)
        if self._here is None or self._closing:
            raise LoomError("the server is starting or stopping: ask again")
        system = SYSTEMS[options.system]
        check_commands(system)
        if not options.python:
            options = replace(options, python=sys.executable)
        queue = Queue(options, secrets.token_hex(3), self._retire, self._on_changed)
        with self._lock:
            self._check_new(options)
        try:
            queue.write_files(self._here)
            if question.try_first:
                queue.try_out()
            with self._awake:
                self._check_new(options)
                self._queues[options.name] = queue
                self._wake()
        except BaseException:
            queue.remove_files()
            raise
        self._on_changed()
        notes = [f"logs of its jobs: {system.log_file(queue.directory)}"]
        if is_loopback(self._here.host):
            notes.append(
                f"the server listens at {self._here.host} only: jobs on other machines do not reach it (start it with "
                "--host 0.0.0.0, or --interface)"
            )
        return Said(tuple(notes))

    def _check_new(self, options: QueueOptions) -> None:
        if options.name in self._queues:
            raise LoomError(
                f"there is a queue {options.name!r} already: choose another --name, or remove that one first"
            )
        if len(self._queues) >= _MOST_QUEUES:
            raise LoomError(f"the server has {_MOST_QUEUES} queues: remove some first")

    def _remove(self, question: RemoveQueue) -> Said:
        with self._awake:
            queue = self._named(question.name)
            queue.removing = True
            queue.keep_logs = question.keep_logs
            self._wake()
        self._on_changed()
        deadline = time.monotonic() + _REMOVE_S
        with self._awake:
            while self._queues.get(question.name) is queue:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    said = queue.report().problems
                    raise LoomError(
                        f"the jobs of the queue {question.name!r} could not be cancelled yet, which is tried again: "
                        f"{said[-1] if said else 'the batch system has not answered'}"
                    )
                self._awake.wait(left_s)
        return Said((f"logs: {queue.directory}",) if question.keep_logs else ())

    def _named(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            others = ", ".join(sorted(self._queues))
            raise LoomError(
                f"the server has no queue {name!r}; it has: {others}"
                if others
                else f"the server has no queue {name!r}, and no other: `loom alloc add` makes one"
            )
        return queue

    # -- The thread ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """With the lock held."""
        self._woken = True
        self._awake.notify_all()

    def _on_changed(self) -> None:
        """Have it written down."""
        with self._lock:
            state = msgspec.json.encode([queue.to_keep() for queue in self._queues.values()])
            if len(state) <= MAX_QUESTION_BYTES:
                self._keep(state)
                return
        _log.error("the allocation queues have too many jobs and options to be kept in the journal")

    def _run(self) -> None:
        assert self._here is not None
        for queue in list(self._queues.values()):  # those of an earlier server: it may have been elsewhere
            if not queue.removing:
                self._write_files(queue, self._here)
        while True:
            with self._awake:
                while not (self._closing or self._woken or self._queues):
                    self._awake.wait()
                if self._closing:
                    return
                self._woken = False
                queues = list(self._queues.values())
            try:
                self._turn(queues)
            except Exception:
                _log.exception("a turn of the allocation queues failed")
            with self._awake:
                if not (self._closing or self._woken):
                    self._awake.wait(min([_TURN_S, *(queue.options.poll_s for queue in queues)]))

    def _write_files(self, queue: Queue, here: Here) -> None:
        try:
            queue.write_files(here)
        except LoomException as error:
            queue.complain(str(error))

    def _turn(self, queues: list[Queue]) -> None:
        load: Load | None = None
        if any(not queue.removing for queue in queues):
            try:
                load = self._load()
            except (LoomException, TimeoutError):
                _log.debug("the server does not say what waits")
        for queue in queues:
            if self._closing:
                return
            if queue.removing:
                self._end(queue)
            else:
                queue.turn(load, time.monotonic())

    def _end(self, queue: Queue) -> None:
        now = time.monotonic()
        if now < self._cancel_at:
            return
        try:
            queue.cancel()
        except DeployError as error:
            queue.complain(str(error))
            self._cancel_at = now + _AGAIN_S
            return
        queue.remove_files()
        with self._awake:
            del self._queues[queue.options.name]
            self._awake.notify_all()
        self._on_changed()
