"""What clients ask about a server's allocation queues, and what they are answered: JSON inside of one message."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from loom.deploy.batch.options import QueueOptions
from loom.errors import LoomError


class AddQueue(Struct, frozen=True, tag="add"):
    """`try_first`: let the batch system say first whether it would take such a job, where it can."""

    options: QueueOptions
    try_first: bool = True


class ListQueues(Struct, frozen=True, tag="list"):
    """What there is: answered by Queues."""


class PauseQueue(Struct, frozen=True, tag="pause"):
    """While it is paused no job is submitted; those that are there go on. Not paused: it goes on."""

    name: str
    paused: bool


class ScaleQueue(Struct, frozen=True, tag="scale"):
    """Between so many workers from now on."""

    name: str
    min_workers: int
    max_workers: int
    idle_s: float


class RemoveQueue(Struct, frozen=True, tag="remove"):
    """Cancel its jobs and forget it. Its directory goes with it, unless `keep_logs`."""

    name: str
    keep_logs: bool = False


Question = AddQueue | ListQueues | PauseQueue | ScaleQueue | RemoveQueue


class JobReport(Struct, frozen=True):
    """`reason`: why it waits, as the batch system says. `left`: of its time, as that says. `workers`: their names."""

    id: str
    state: str
    reason: str
    left: str
    workers: tuple[str, ...]


class QueueReport(Struct, frozen=True):
    """`id`: a number that no other queue has. `n_wanted`: jobs. `n_connected`: of its workers, those that are at the
    server. `problems`: latest last.
    """

    options: QueueOptions
    id: str
    directory: str
    paused: bool
    removing: bool
    n_wanted: int
    n_connected: int
    n_submitted: int
    jobs: tuple[JobReport, ...]
    problems: tuple[str, ...]


class Queues(Struct, frozen=True, tag="queues"):
    queues: tuple[QueueReport, ...]


class Said(Struct, frozen=True, tag="said"):
    """It is done; `notes` are for people."""

    notes: tuple[str, ...] = ()


Answer = Queues | Said
Answered = TypeVar("Answered", Queues, Said)

_question_decoder: Final[msgspec.json.Decoder[Question]] = msgspec.json.Decoder(Question)
_answer_decoder: Final[msgspec.json.Decoder[Answer]] = msgspec.json.Decoder(Answer)


def encode(message: Question | Answer) -> bytes:
    return msgspec.json.encode(message)


def decode_question(data: bytes) -> Question:
    """LoomError where it is none that this server knows."""
    try:
        return _question_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise LoomError(f"not a question about allocation queues: {error}") from None


def decode_answer(data: bytes, kind: type[Answered]) -> Answered:
    """LoomError where it is not of that kind."""
    try:
        answer = _answer_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise LoomError(f"the server's answer about allocation queues makes no sense: {error}") from None
    if not isinstance(answer, kind):
        raise LoomError(f"the server answered with {type(answer).__name__}")
    return answer
