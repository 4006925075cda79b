"""What the tasks do. Executors import it by name; plans compute the same values from the pure half of each."""

from __future__ import annotations

import ctypes
import hashlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chaos import ledger
from loom import tasks
from loom.tasktypes.task import Task

Value = bytes | list[bytes]

# -- What is computed -------------------------------------------------------------------------------------------------


def mix(values: Iterable[bytes]) -> bytes:
    """64 bytes that depend on every byte and on the order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(b"%d:" % len(value))
        digest.update(value)
    return digest.hexdigest().encode()


def blob(size_bytes: int, values: Iterable[bytes]) -> bytes:
    block = mix(values)
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


def parts(n: int, size_bytes: int, values: Iterable[bytes]) -> list[bytes]:
    seed = mix(values)
    return [blob(size_bytes, (seed, b"%d" % i)) for i in range(n)]


# -- Tasks ------------------------------------------------------------------------------------------------------------


def _bytes_of(wrapper: Any) -> bytes:
    return wrapper.read() if wrapper.is_d_object else b"".join(element.read() for element in wrapper)


class _Run:
    """Writes that the task begins, takes its time, and at the end writes that it has ended."""

    def __init__(self, context: Any, name: str, ms: float) -> None:
        self._run = name, context.task_id, getattr(context, "attempt", 0)
        ledger.append(ledger.BEGUN, *self._run)
        _work(ms)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            ledger.append(ledger.ENDED, *self._run)


def pause(seconds: float) -> None:
    """As time.sleep, which is an error under libfaketime (clock_nanosleep until a monotonic time)."""
    select.select((), (), (), seconds)


def _work(ms: float) -> None:
    """Half of it waiting, half of it computing."""
    pause(ms / 2000)
    until = time.thread_time() + ms / 2000
    while time.thread_time() < until:
        pass


def run_mix(context: Any, name: str, ms: float, *inputs: Any) -> bytes:
    with _Run(context, name, ms):
        return mix(map(_bytes_of, inputs))


def run_blob(context: Any, name: str, ms: float, size_bytes: int, *inputs: Any) -> bytes:
    with _Run(context, name, ms):
        return blob(size_bytes, map(_bytes_of, inputs))


def run_parts(context: Any, name: str, ms: float, n: int, size_bytes: int, *inputs: Any) -> list[bytes]:
    with _Run(context, name, ms):
        return parts(n, size_bytes, map(_bytes_of, inputs))


def run_upper(context: Any, name: str, ms: float, *inputs: Any) -> bytes:
    """The same of a whole as of its pieces one after the other."""
    with _Run(context, name, ms):
        return b"".join(map(_bytes_of, inputs)).upper()


def run_redirect(context: Any, name: str, ms: float, depth: int, retries: int, value: Any) -> Task:
    """A plan in its place: `depth` more of these, in the end mix of the input and a constant."""
    with _Run(context, name, ms):
        inner = name.rstrip(f"{ledger.MANY};") + f"-r{ledger.MANY};"
        if depth:
            task = redirect_task(inner, ms, depth - 1, retries, value)
        else:
            task = mix_task(inner, ms, value, tasks.const(b"end"))
        task.retries = retries  # what it returns does not inherit its own
        return task


mix_task = tasks.py_task("mix", context=True, n_direct_args=2)(run_mix)
blob_task = tasks.py_task("blob", context=True, n_direct_args=3)(run_blob)
parts_task = tasks.py_task("parts", context=True, n_direct_args=4)(run_parts)
upper_task = tasks.py_task("upper", context=True, n_direct_args=2)(run_upper)
redirect_task = tasks.py_task("redirect", context=True, n_direct_args=4)(run_redirect)


# -- Tasks that misbehave ---------------------------------------------------------------------------------------------


def first_time(directory: str, name: str) -> bool:
    """Whether this is the first execution of the task in this run."""
    try:
        (Path(directory) / name.replace(":", "-").rstrip(";")).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die(how: str) -> None:
    """End this process in one of several bad ways."""
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(7)
        case "abort":
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stack":
            _overflow_stack()
    raise AssertionError(f"still there after {how}")


def _overflow_stack() -> None:
    """Recursion in C without end: qsort whose comparison sorts."""
    libc = ctypes.CDLL(None)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    two = (ctypes.c_char * 2)()

    def again(_left: object, _right: object) -> int:
        libc.qsort(two, 2, 1, callback)
        return 0

    callback = compare(again)
    sys.setrecursionlimit(1 << 30)
    libc.qsort(two, 2, 1, callback)


def run_deadly(context: Any, name: str, ms: float, how: str, directory: str, *inputs: Any) -> bytes:
    """Dies each time; with a directory only the first time."""
    with _Run(context, name, ms):
        if not directory or first_time(directory, name):
            die(how)
        return mix(map(_bytes_of, inputs))


def run_poison(context: Any, name: str, ms: float) -> bytes:
    """Kills the worker that runs it."""
    with _Run(context, name, ms):
        os.kill(os.getppid(), signal.SIGKILL)
        pause(60)
        return b""


def run_glutton(context: Any, name: str, ms: float, size_bytes: int) -> bytes:
    """Takes so much memory, and touches it."""
    with _Run(context, name, ms):
        taken: list[bytes] = []
        while sum(map(len, taken)) < size_bytes:
            taken.append(b"x" * (8 << 20))
            pause(0.01)
        return b"%d" % len(taken)


deadly_task = tasks.py_task("deadly", context=True, n_direct_args=4)(run_deadly)
poison_task = tasks.py_task("poison", context=True, n_direct_args=2)(run_poison)


def glutton_task(name: str, ms: float, size_bytes: int, request: Any) -> Task:
    return tasks.py_task("glutton", request, context=True, n_direct_args=3)(run_glutton)(name, ms, size_bytes)


def joined(values: Sequence[Value]) -> list[bytes]:
    """Of each value the bytes that `read` of its wrapper and of its elements gives."""
    return [value if isinstance(value, bytes) else b"".join(value) for value in values]
