"""Two hosts on this machine: network namespaces joined by a pair of virtual Ethernet ports."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_CLONE_NEWNET = 0x40000000
_NEAR, _FAR = "10.73.0.1", "10.73.0.2"  # seen inside the two namespaces only


@dataclass(frozen=True)
class TwoHosts:
    """The near host is where this thread is from now on, with the threads and processes it starts."""

    near_address: str
    far_namespace: str

    @property
    def far_prefix(self) -> list[str]:
        """What stands before a command that is to run on the far host."""
        return ["ip", "netns", "exec", self.far_namespace]


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip: apt install iproute2"
    done = subprocess.run(["ip", "netns", "add", f"loom-{os.getpid()}-try"], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", f"loom-{os.getpid()}-try"], check=True)
    return ""


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Make both, and move this thread to the near one; afterwards it is back, and both are gone."""
    near, far = (f"loom-{os.getpid()}-{end}" for end in ("near", "far"))
    try:
        for name in (near, far):
            ip("netns", "add", name)
        ip("-n", near, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", far)
        for name, address in ((near, _NEAR), (far, _FAR)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        with inside(near):
            yield TwoHosts(_NEAR, far)
    finally:
        for name in (near, far):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread, and what it starts meanwhile, threads and processes, are in that network namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(name)
        yield
    finally:
        _set(before)
        os.close(before)


def enter(name: str) -> None:
    """Move this thread, and what it starts from now on, into that network namespace."""
    descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        _set(descriptor)
    finally:
        os.close(descriptor)


def _set(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def ip(*arguments: str) -> None:
    """OSError with what the program says."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
