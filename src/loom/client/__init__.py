"""The Python gateway to Loom: build a plan with `tasks`, submit it with a `Client`, collect results from `Future`s.

from loom.client import Client, tasks

with Client() as client:  # a server and a worker on this machine, gone with the client
    hello = tasks.merge((tasks.const("Hello "), tasks.const("world!")))
    print(client.submit_one(hello).gather())  # b'Hello world!'
"""

import sys

from loom import tasks
from loom.client.client import Client
from loom.client.future import Future
from loom.client.sessions import NamedSession
from loom.errors import LoomError, LoomException, TaskFailed
from loom.lore import make_dry_report
from loom.tasktypes.task import Task

sys.modules["loom.client.tasks"] = tasks  # the same module under both of its names

__all__ = [
    "Client",
    "Future",
    "LoomError",
    "LoomException",
    "NamedSession",
    "Task",
    "TaskFailed",
    "make_dry_report",
    "tasks",
]
