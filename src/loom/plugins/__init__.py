"""What authors of plugins import: own task types and own data types.

    from loom.plugins import TaskError, task_type

    @task_type("my/count")
    def count(inputs, config):
        if len(inputs) != 1 or len(config) != 1:
            raise TaskError("my/count takes one input and one byte as its configuration")
        return inputs[0].read().count(config).to_bytes(8, "little")

A worker loads the module with `loom-worker --load my_module HOST PORT`; `Client(load=["my_module"])` has its own worker
do so. docs/plugins.md tells it all; what native plugins (`--load-native`) include is in `include_directory()`.
"""

import os
from typing import Final

import loom
from loom.plugins.loading import PluginError, load, load_native
from loom.plugins.types import data_type, task_type
from loom.tasktypes.base import TaskError
from loom.tasktypes.wrappers import Context, SequenceWrapper, Wrapper

__all__ = [
    "Context",
    "PluginError",
    "SequenceWrapper",
    "TaskError",
    "Wrapper",
    "data_type",
    "include_directory",
    "load",
    "load_native",
    "task_type",
]

_HERE: Final = os.path.dirname(os.path.abspath(loom.__file__))


def include_directory() -> str:
    """Where a compiler finds `loom/plugin.h`; `python -m loom.plugins --include` prints it."""
    return os.path.join(_HERE, "include")
