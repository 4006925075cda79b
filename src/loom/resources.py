"""What a task asks of a worker."""

import re
from typing import Annotated, Final, SupportsFloat

from msgspec import Meta, Struct

from loom.errors import LoomError
from loom.limits import MAX_CPUS, MAX_EXTRA, MAX_EXTRAS, MAX_LABEL_CHARS

MEM: Final = "mem"  # bytes
GPUS: Final = "gpus"  # in parts of a gpu
GPU_PARTS: Final = 10_000  # one whole gpu

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS: Final = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


_NAME: Final = Meta(max_length=MAX_LABEL_CHARS)


class Request(Struct, frozen=True, array_like=True, gc=False):
    """A resource request. `cpus` = 0 is a light task: it may run beside full cores.

    `extras` are amounts besides cores, by rising names: "mem" in bytes, "gpus" in parts of a gpu (GPU_PARTS are one),
    others in whatever their workers count.
    """

    cpus: int = 0
    extras: Annotated[tuple[tuple[Annotated[str, _NAME], int], ...], Meta(max_length=MAX_EXTRAS)] = ()


def cpus(n: int) -> Request:
    """A request for `n` cores of one worker (HyperLoom's `loom/resource/cpus`)."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CPUS:
        raise LoomError(f"cpus({n!r}): the number of cores is an integer from 1 to {MAX_CPUS}")
    return Request(n)


def resources(cpus: int = 1, mem: int | str = 0, gpus: SupportsFloat = 0, **named: int) -> Request:
    """A request for cores, memory, gpus and named resources of one worker.

    `mem`: bytes, or text such as "4GiB" or "500 MB". `gpus`: whole ones, or a part of one (0.25). Others by the names
    that workers give them (`loom-worker --resource fpga=2`): `resources(cpus=2, fpga=1)`.
    """
    cores = _cores(cpus).cpus
    for name, amount in named.items():
        if isinstance(amount, str | float):
            raise LoomError(f"resources({name}={amount!r}): a whole number of {name}; memory is asked for with mem=")
    extras = {name: _whole(f"resources({name}={amount!r})", amount) for name, amount in named.items()}
    for name in extras:
        check_name(name)
    extras[MEM] = parse_size(mem)
    extras[GPUS] = gpu_parts(gpus)
    return Request(cores, tuple(sorted((name, amount) for name, amount in extras.items() if amount)))


_cores = cpus  # `resources` has an argument of that name
cpu1 = cpus(1)


def parse_size(size: int | str) -> int:
    """A number of bytes, from such a number or from text with a unit: kB, MB, GB, TB, KiB, MiB, GiB, TiB."""
    if isinstance(size, str):
        found = _SIZE.fullmatch(size)
        unit = found[2].lower() if found else ""
        if found is None or unit not in {**_UNITS, **_BINARY_UNITS}:
            raise LoomError(f"{size!r} is no size: write a number of bytes, or one with a unit, such as 4GiB or 500MB")
        size = int(float(found[1]) * {**_UNITS, **_BINARY_UNITS}[unit])
    return _whole(f"the size {size!r}", size)


def gpu_parts(gpus: SupportsFloat) -> int:
    """A number of gpus in parts: a whole number of them, or a part of one."""
    try:
        number = float(gpus)
    except (TypeError, ValueError):
        raise LoomError(f"gpus={gpus!r} is no number") from None
    if not 0 <= number <= MAX_CPUS or (number > 1 and number != int(number)):
        raise LoomError(f"gpus={gpus!r}: ask for a part of one gpu, such as 0.5, or for whole ones")
    parts = round(number * GPU_PARTS)
    if number and not parts:
        raise LoomError(f"gpus={gpus!r}: the smallest part of a gpu is 1/{GPU_PARTS}")
    return parts


def check_name(name: str) -> None:
    """LoomError where a resource cannot have this name."""
    if not name or len(name) > MAX_LABEL_CHARS or not name.isprintable() or "=" in name:
        raise LoomError(f"{name!r:.200} is no name of a resource")
    if name in (MEM, GPUS, "cpus"):
        raise LoomError(f"the resource {name!r} has an option of its own, --{name}")


def _whole(what: str, amount: object) -> int:
    if isinstance(amount, bool) or not isinstance(amount, int) or not 0 <= amount <= MAX_EXTRA:
        raise LoomError(f"{what}: an amount is an integer from 0 to {MAX_EXTRA}")
    return amount


def describe(request: Request) -> str:
    """A request in words: `2 cores, 4.0 GiB of mem, 0.5 gpus, 1 fpga`."""
    words = [f"{request.cpus} core{'s' * (request.cpus != 1)}"]
    for name, amount in request.extras:
        if name == MEM:
            words.append(f"{amount / (1 << 30):.3g} GiB of mem")
        else:
            words.append(f"{amount / GPU_PARTS if name == GPUS else amount:g} {name}")
    return ", ".join(words)


def size_text(size_bytes: int) -> str:
    """A number of bytes for people: `512 B`, `1.5 MiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def is_valid(request: Request) -> bool:
    """Whether a request that came over a wire is one that the builders make."""
    names = [name for name, _ in request.extras]
    return (
        0 <= request.cpus <= MAX_CPUS
        and len(names) <= MAX_EXTRAS
        and names == sorted(set(names))
        and all(0 < len(name) <= MAX_LABEL_CHARS for name in names)
        and (bool(request.cpus) or not names)
        and all(0 < amount <= MAX_EXTRA for _, amount in request.extras)
    )
