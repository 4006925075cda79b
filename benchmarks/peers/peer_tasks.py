"""What tasks of peers do. Their workers import it by name; as a program it is `busy` of so many seconds."""

import os
import subprocess
import sys
import time

_MIB = 1 << 20


def noop(*_):
    return b""


def busy(seconds, *_):
    """Use so many seconds of this thread's CPU time."""
    clock = time.thread_time
    end = clock() + seconds
    while clock() < end:
        pass
    return b""


def external(*_):
    """Output captured, as Loom captures it."""
    subprocess.run(["/bin/true"], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return b""


def make(size_bytes):
    """Random bytes, a MiB of them over and over."""
    block = os.urandom(min(size_bytes, _MIB))
    return b"".join([block] * (size_bytes // len(block)))


def length(content):
    return len(content)


def neighbours(place, width):
    """Which tasks of the step before one of a stencil takes."""
    return range(max(0, place - 1), min(width, place + 2))


if __name__ == "__main__":
    busy(float(sys.argv[1]))
