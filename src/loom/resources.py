"""What a task asks of a worker."""

from msgspec import Struct

from loom.errors import LoomError
from loom.limits import MAX_CPUS


class Request(Struct, frozen=True, array_like=True, gc=False):
    """A resource request. `cpus` = 0 is a light task: it may run beside full cores."""

    cpus: int = 0


def cpus(n: int) -> Request:
    """A request for `n` cores of one worker (HyperLoom's `loom/resource/cpus`)."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CPUS:
        raise LoomError(f"cpus({n!r}): the number of cores is an integer from 1 to {MAX_CPUS}")
    return Request(n)


cpu1 = cpus(1)
