"""Stands for the worker around a `ProgramRunner`."""

import asyncio
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loom.data.base import DataObject
from loom.data.buffers import FileSegment, StoredFile
from loom.data.plain import Plain
from loom.executors.environment import Variables
from loom.executors.orphans import Orphans
from loom.executors.programs import ProgramRunner
from loom.tasktypes.content import const
from loom.tasktypes.run import run

TIMEOUT_S = 30
TASK = 7


class Owner:
    """Stands for the worker: runs programs and keeps how they ended."""

    def __init__(self, base_dir: Path) -> None:
        self.base_dir = base_dir
        self.loop = asyncio.new_event_loop()
        self.ended: dict[int, tuple[DataObject | None, str, int]] = {}
        self.changed: list[tuple[int, int]] = []
        self.orphans = Orphans(self.loop)
        changed = self.changed
        self.runner = ProgramRunner(str(base_dir), self.loop, self.orphans, lambda task, at: changed.append((task, at)))

    def on_done(self, task: int, value: DataObject | None, error: str, duration_us: int, _terminated: bool) -> None:
        assert task not in self.ended
        assert (value is None) == bool(error)
        self.ended[task] = value, error, duration_us

    def start(
        self,
        args: str | Sequence[str],
        inputs: Sequence[tuple[DataObject, str | None]] = (),
        outputs: Sequence[str | None] = (None,),
        task: int = TASK,
        variables: Variables = (),
        cores: tuple[int, ...] = (),
    ) -> None:
        built = run(args, [(const(""), name) for _value, name in inputs], outputs)
        assert isinstance(built.config, bytes)
        self.runner.start(task, built.config, [value for value, _name in inputs], self.on_done, variables, cores)

    def wait(self, condition: Callable[[], object]) -> None:
        async def until() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(asyncio.wait_for(until(), TIMEOUT_S))

    def run(
        self,
        args: str | Sequence[str],
        inputs: Sequence[tuple[DataObject, str | None]] = (),
        outputs: Sequence[str | None] = (None,),
        variables: Variables = (),
        cores: tuple[int, ...] = (),
        task: int = TASK,
    ) -> DataObject:
        self.start(args, inputs, outputs, task, variables, cores)
        self.wait(lambda: task in self.ended)
        value, error, _duration = self.ended.pop(task)
        assert value is not None, error
        return value

    def fail(
        self,
        args: str | Sequence[str],
        inputs: Sequence[tuple[DataObject, str | None]] = (),
        outputs: Sequence[str | None] = (None,),
    ) -> str:
        self.start(args, inputs, outputs)
        self.wait(lambda: TASK in self.ended)
        _value, error, _duration = self.ended.pop(TASK)
        assert error
        return error

    def stored(self, data: bytes, name: str = "stored") -> Plain:
        path = self.base_dir / name
        path.write_bytes(data)
        return Plain(FileSegment(StoredFile(str(path), len(data)), 0, len(data)))

    def shell(self, script: str, **given: object) -> DataObject:
        return self.run(("sh", "-c", script), **given)  # type: ignore[arg-type]


@contextmanager
def owning(base_dir: Path) -> Iterator[Owner]:
    """An owner whose programs run below a new directory; of them nothing is left, no descriptor either."""
    base_dir.mkdir()
    gc.collect()  # what earlier tests have left to it
    before = len(os.listdir("/proc/self/fd"))
    where = os.getcwd()
    owner = Owner(base_dir)
    yield owner
    owner.runner.close()
    owner.orphans.close()
    assert os.getcwd() in ("/", where)
    os.chdir(where)
    owner.loop.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors leak"
    assert os.listdir(base_dir) == [], "files are left"
