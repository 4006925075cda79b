"""Builders of tasks: each makes a node of a plan, to be submitted or to be an input of others.

    from loom.client import tasks

    hello = tasks.merge((tasks.const("Hello "), tasks.const("world!")))

Building is cheap and touches no server. Tasks are light unless said otherwise: they ask for no core and may run beside
full ones. `run`, `save`, `py_value`, `py_call` and `py_task` ask for one core; `task.resource_request = cpus(4)`, or
`resources(cpus=2, mem="4GiB", gpus=1)`, changes that.
"""

from loom.resources import cpu1, cpus, resources
from loom.tasktypes.arrays import array_make
from loom.tasktypes.basic import dget, dslice, get, length, size, slice
from loom.tasktypes.content import const, merge, open, split
from loom.tasktypes.python import py_call, py_task, py_value
from loom.tasktypes.run import run
from loom.tasktypes.saving import save

__all__ = [
    "array_make",
    "const",
    "cpu1",
    "cpus",
    "dget",
    "dslice",
    "get",
    "length",
    "make_array",
    "merge",
    "open",
    "py_call",
    "py_task",
    "py_value",
    "resources",
    "run",
    "save",
    "size",
    "slice",
    "split",
]

make_array = array_make
