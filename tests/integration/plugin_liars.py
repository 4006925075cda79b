"""A plugin for tests: types that throw, crash and lie, and some that only look as if they did."""

import os
import signal
from typing import Any

from loom.plugins import Context, Wrapper, data_type, task_type


class _Bytes:
    """What all of them have in common. `n` is what is packed."""

    def __init__(self, n: int = 3) -> None:
        self.n = n

    def pack(self) -> Any:
        return b"x" * self.n

    @classmethod
    def unpack(cls, packed: memoryview) -> Any:
        return cls(len(packed))


@data_type("liar/negative")
class Negative(_Bytes):
    def size(self) -> int:
        return -1


@data_type("liar/text")
class Text(_Bytes):
    def length(self) -> Any:
        return "three"


@data_type("liar/endless")
class Endless(_Bytes):
    def size(self) -> int:
        return 1 << 200


@data_type("liar/throws")
class Throws(_Bytes):
    def size(self) -> int:
        raise RuntimeError("no size today")


@data_type("liar/nonsense")
class Nonsense(_Bytes):
    def pack(self) -> Any:
        return {"a": 1}


@data_type("liar/sealed")
class Sealed(_Bytes):
    def length(self) -> int:
        return 2

    def get(self, i: int) -> bytes:
        return b"never"

    @classmethod
    def unpack(cls, packed: memoryview) -> Any:
        raise RuntimeError("not to be opened")


@data_type("liar/holey")
class Holey(_Bytes):
    def length(self) -> int:
        return 5

    def get(self, i: int) -> bytes:
        return [b"zero", b"one"][i]


@data_type("liar/small")
class Small(_Bytes):
    """Says that it is one byte."""

    def size(self) -> int:
        return 1


@data_type("liar/large")
class Large(_Bytes):
    """Says that it is 256 TiB."""

    def size(self) -> int:
        return 1 << 48


CLASSES = {cls.__name__: cls for cls in _Bytes.__subclasses__()}


@task_type("liar/make")
def make(inputs: list[Wrapper], config: bytes) -> Any:
    """An object of the class that the configuration names, with a payload of so many bytes."""
    name, _, n = config.decode().partition(" ")
    return CLASSES[name](int(n or 3))


@task_type("liar/throw")
def throw(inputs: list[Wrapper], config: bytes) -> bytes:
    raise KeyError(config.decode())


@task_type("liar/crash")
def crash(inputs: list[Wrapper], config: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGSEGV)
    return b"still here"


@task_type("liar/log", context=True)
class Log:
    """Says its calls to the log; returns the input as it is."""

    def __init__(self) -> None:
        self.calls = 0

    def run(self, ctx: Context, inputs: list[Wrapper], config: bytes) -> Wrapper:
        self.calls += 1
        ctx.log_warn(f"call {self.calls} of {config.decode()}")
        return inputs[0]
