"""Cutting batches of tasks for an executor into messages: what is in one message is claimed as one."""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.msgpack import Encoder
from msgspec.structs import replace

from loom.messages import ExecutorBatch, ExecutorInput, ExecutorTask

# What an executor has claimed cannot be read back, so a message is short; what a receive costs (some 2 us) is spread
# over its tasks.
MESSAGE_TASKS: Final = 32

_encoder = Encoder()


def cut_batch(batch: ExecutorBatch, fds: Sequence[int]) -> Iterator[tuple[list[ExecutorTask], bytes, list[int]]]:
    """Messages: their tasks, body and descriptors. A task with descriptors travels alone."""
    tasks = batch.tasks
    if not fds:
        for start in range(0, len(tasks), MESSAGE_TASKS):
            some = tasks[start : start + MESSAGE_TASKS]
            yield some, _encoder.encode(ExecutorBatch(some)), []
        return
    plain: list[ExecutorTask] = []
    for task in tasks:
        used = sorted({part[0] for given in task.inputs if isinstance(given, ExecutorInput) for part in given.parts})
        if used or len(plain) == MESSAGE_TASKS:
            if plain:
                yield plain, _encoder.encode(ExecutorBatch(plain)), []
            plain = []
        if used:
            alone = _with_descriptors(task, {index: place for place, index in enumerate(used)})
            yield [task], _encoder.encode(ExecutorBatch([alone])), [fds[index] for index in used]
        else:
            plain.append(task)
    if plain:
        yield plain, _encoder.encode(ExecutorBatch(plain)), []


def _with_descriptors(task: ExecutorTask, places: dict[int, int]) -> ExecutorTask:
    """The task with its descriptor indices replaced."""
    inputs = [
        replace(given, parts=[(places[index], offset, size) for index, offset, size in given.parts])
        if isinstance(given, ExecutorInput)
        else given
        for given in task.inputs
    ]
    return replace(task, inputs=inputs)
