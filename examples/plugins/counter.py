"""The task type my/count in Python: how often a byte occurs, as an unsigned 64-bit little-endian number."""

from collections.abc import Sequence

from loom.plugins import TaskError, Wrapper, task_type


@task_type("my/count")
def count(inputs: Sequence[Wrapper], config: bytes) -> bytes:
    if len(inputs) != 1 or len(config) != 1:
        raise TaskError("Invalid use of the task")
    if not inputs[0].is_d_object:
        raise TaskError("Input object does not contain raw data")
    return inputs[0].read().count(config).to_bytes(8, "little")
