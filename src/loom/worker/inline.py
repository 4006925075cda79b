"""Built-ins that run in the worker's loop, because they cost less than handing them to anybody."""

from __future__ import annotations

import logging
from time import perf_counter_ns

from loom.core.worker_events import Done, Failed, NotInline
from loom.core.worker_tasks import Task
from loom.data.base import DataObject
from loom.data.buffers import total_size
from loom.data.own import OwnObject
from loom.data.pack import describe, to_packed
from loom.data.plain import Plain
from loom.ids import number_of
from loom.limits import INLINE_RESULT_BYTES
from loom.messages import RESULT
from loom.tasktypes.base import RunContext, TaskError
from loom.tasktypes.basic import OPENS_OWN
from loom.tasktypes.registry import TASK_TYPES
from loom.tasktypes.task import Task as PlanTask
from loom.worker.store import Store

_log = logging.getLogger("loom.task")


class InlineRunner:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._context = RunContext(0, _log.log, store.new_file, {}, ())

    def run(self, task: Task) -> Done | Failed | NotInline:
        """Run a built-in whose inputs are in the store, and store its object; not where that takes a plugin's code."""
        began_ns = perf_counter_ns()
        store = self._store
        context = self._context
        context.task_id = number_of(task.id)
        context.input_ids = task.inputs
        try:
            inputs = [store.get(i) for i in task.inputs]
            if task.kind.symbol in OPENS_OWN and any(isinstance(value, OwnObject) for value in inputs):
                return NotInline(task.id, task.attempt)
            value = TASK_TYPES[task.kind.symbol].run(context, task.config, inputs)
            assert not isinstance(value, PlanTask), "only Python functions redirect"
            store.put(task.id, value)
        except (TaskError, OSError, MemoryError) as error:
            return Failed(task.id, task.attempt, store.error_text(error))
        except Exception as error:  # a built-in that fails otherwise is our fault, and this task's alone
            _log.exception("task %#x (%s) failed in a way it must not", task.id, task.kind.symbol)
            return Failed(task.id, task.attempt, f"internal error in {task.kind.symbol}: {error!r}")
        return done_of(task, value, (perf_counter_ns() - began_ns) // 1000)


def done_of(task: Task, value: DataObject, duration_us: int) -> Done:
    """What the core is told of a stored object; a small result goes along to its client."""
    size_bytes = value.size()
    packed = None
    if task.flags & RESULT and size_bytes <= INLINE_RESULT_BYTES and _has_few_bytes(value):
        packed = to_packed(value)
        if len(packed) > INLINE_RESULT_BYTES:
            packed = None
    return Done(task.id, task.attempt, size_bytes, value.length(), duration_us, packed)


def _has_few_bytes(value: DataObject) -> bool:
    """Whether the real payload is as small as the object says."""
    return isinstance(value, Plain) or total_size(describe(value)[1]) <= INLINE_RESULT_BYTES
