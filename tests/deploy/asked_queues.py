"""Allocation queues of a server, as tests ask about them."""

from loom.deploy.asking import Asker
from loom.deploy.batch.options import QueueOptions
from loom.deploy.batch.questions import (
    AddQueue,
    JobReport,
    ListQueues,
    PauseQueue,
    QueueReport,
    Queues,
    RemoveQueue,
    Said,
    decode_answer,
    encode,
)
from loom.messages import WorkerLoad
from loom.net.places import FixedPlace
from loom.net.trust import find_trust


class AskedQueues:
    def __init__(self, port: int) -> None:
        self.asker = Asker(FixedPlace("127.0.0.1", port), find_trust())

    def add(self, options: QueueOptions, try_first: bool = True) -> tuple[str, ...]:
        return self._do(AddQueue(options, try_first))

    def pause(self, name: str, paused: bool) -> None:
        self._do(PauseQueue(name, paused))

    def remove(self, name: str, keep_logs: bool = False) -> tuple[str, ...]:
        return self._do(RemoveQueue(name, keep_logs))

    def _do(self, question: AddQueue | PauseQueue | RemoveQueue) -> tuple[str, ...]:
        return decode_answer(self.asker.allocations(encode(question)), Said).notes

    def all(self) -> tuple[QueueReport, ...]:
        return decode_answer(self.asker.allocations(encode(ListQueues())), Queues).queues

    def one(self) -> QueueReport:
        (queue,) = self.all()
        return queue

    def jobs(self) -> tuple[JobReport, ...]:
        return self.one().jobs

    def problems(self) -> str:
        return "\n".join(self.one().problems)

    def workers(self) -> dict[str, WorkerLoad]:
        return {worker.name: worker for worker in self.asker.load().workers}

    def close(self) -> None:
        self.asker.close()
