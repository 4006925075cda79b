"""What Loom is measured beside: a process pool, blocking loopback sockets, memory copies, xargs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_any

from benchmarks.meter import Meter
from benchmarks.namespaces import enter

N_WORKERS = 2
_SPAWN = multiprocessing.get_context("spawn")  # forking a process that has a client's threads is asking for trouble
_SMALL = b"x" * 64
_ORDER = struct.Struct("!Q")


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait_for_any([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)  # a handler may tidy up

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def process_pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(N_WORKERS, mp_context=_SPAWN, initializer=end_with_parent) as pool:
        yield pool


def pool_bag(
    pool: ProcessPoolExecutor, function: Callable[..., object], arguments: Iterable[object], meter: Meter
) -> None:
    with meter:
        futures = [pool.submit(function, argument) for argument in arguments]
        wait(futures)
    for future in futures:
        future.result()


class LoopbackPeer:
    """A process at the other end of a TCP link over loopback: it answers small messages, and sends large ones."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def round_trips(self, n: int, meter: Meter) -> None:
        """With the ends on two cores: left to itself the kernel has both on one core now and then, with round trips of
        10 us instead of 80.
        """
        link = self._link
        with _on_core(0), meter:
            for _ in range(n):
                link.sendall(_SMALL)
                _receive(link, len(_SMALL))

    def receive(self, size_bytes: int, meter: Meter) -> None:
        """Have so many bytes sent, into a buffer that exists already."""
        buffer = bytearray(size_bytes)
        with meter:
            self._link.sendall(_ORDER.pack(size_bytes).ljust(len(_SMALL)))
            _receive_into(self._link, memoryview(buffer))


@contextmanager
def _on_core(index: int) -> Iterator[None]:
    """Keep this thread on one of its cores."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[index]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def loopback_peer(host: str = "127.0.0.1", namespace: str = "") -> Iterator[LoopbackPeer]:
    """`namespace`: the network namespace in which the process is to run; from there it connects to `host`."""
    with socket.create_server((host, 0)) as listener:
        process = _SPAWN.Process(target=_answer, args=(listener.getsockname(), namespace), daemon=True)
        process.start()
        try:
            link, _ = listener.accept()
            with link:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield LoopbackPeer(link)
        finally:
            process.kill()
            process.join()


def _answer(address: tuple[str, int], namespace: str) -> None:
    end_with_parent()
    if namespace:
        enter(namespace)
    content = b""
    with _on_core(-1), socket.create_connection(address) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while message := _receive(link, len(_SMALL)):
            if message == _SMALL:
                link.sendall(message)
            else:
                (size_bytes,) = _ORDER.unpack_from(message)
                if len(content) != size_bytes:
                    content = _random(size_bytes)
                link.sendall(content)


def _random(size_bytes: int) -> bytes:
    """A MiB of random bytes, over and over."""
    return (os.urandom(1 << 20) * (size_bytes // (1 << 20) + 1))[:size_bytes]


def _receive(link: socket.socket, size_bytes: int) -> bytes:
    """Exactly so many bytes; none where the other end has closed."""
    received = link.recv(size_bytes)
    while received and len(received) < size_bytes:
        received += link.recv(size_bytes - len(received))
    return received


def _receive_into(link: socket.socket, buffer: memoryview) -> None:
    while buffer:
        count = link.recv_into(buffer)
        if not count:
            raise ConnectionError("the other end has closed")
        buffer = buffer[count:]


def memory_copy(size_bytes: int, times: int, meter: Meter) -> None:
    """Into fresh memory each time, as a reader gets it."""
    content = _random(size_bytes)
    with meter:
        for _ in range(times):
            copy = bytes(memoryview(content))
            assert len(copy) == size_bytes


def xargs(program: str, n: int, meter: Meter) -> None:
    lines = "".join(f"{i}\n" for i in range(n)).encode()
    with meter:
        subprocess.run(["xargs", f"-P{N_WORKERS}", "-n1", program], input=lines, check=True, stdout=subprocess.DEVNULL)
