"""What the server writes down while a trace is on: the facts that its core tells."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterable

from loom.core.events import Fact, InputsChanged, PlanGrew, TaskFailed, WorkerJoined, WorkerLeft
from loom.trace import records
from loom.trace.writer import TraceWriter, now_us, opened_now


class ServerTrace:
    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._writer: TraceWriter | None = None

    def start(self, directory: str) -> None:
        """Write below this directory from now on; where that is done already, nothing changes. Empty: no more."""
        if self._writer is not None and self._writer.directory == directory and self._writer.is_there():
            return
        self.stop()
        if not directory:
            return
        name = f"{socket.gethostname()}:{os.getpid()}"
        opened = opened_now("server", 0, name, 0, [], self._incarnation)
        self._writer = TraceWriter(directory, f"server-{self._incarnation}", opened)

    def stop(self) -> None:
        """Write no more; nothing where nothing is written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def add(self, facts: Iterable[Fact]) -> None:
        """Write these out."""
        writer = self._writer
        if writer is None or writer.broken:
            return
        at_us = now_us()
        for fact in facts:
            writer.add(_record(fact, at_us))
        writer.flush()


def _record(fact: Fact, at_us: int) -> records.AnyRecord:
    match fact:
        case PlanGrew():
            chunk = fact.chunk
            return records.PlanGrew(
                at_us,
                fact.session,
                chunk.first,
                chunk.symbols,
                chunk.labels,
                chunk.symbol_of,
                chunk.label_of,
                chunk.input_ends,
                chunk.inputs,
            )
        case InputsChanged():
            inputs = array("Q", fact.inputs).tobytes()
            return records.InputsChanged(at_us, fact.session, fact.number, fact.symbol, inputs)
        case TaskFailed():
            return records.TaskFailed(at_us, fact.session, fact.number, fact.worker, fact.error)
        case WorkerJoined():
            return records.WorkerJoined(at_us, fact.worker, fact.name, fact.cpus, fact.extras)
        case WorkerLeft():
            return records.WorkerLeft(at_us, fact.worker)
