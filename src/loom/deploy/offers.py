"""What workers are to offer, as arguments of Python and as options of `loom-worker`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from loom.deploy.processes import import_path
from loom.errors import LoomError
from loom.limits import MAX_CPUS, MAX_EXTRAS
from loom.resources import GPU_PARTS, GPUS, MEM, check_name, parse_size
from loom.resources import cpus as check_cpus
from loom.resources import resources as check_resources

_MAX_NAMED: Final = MAX_EXTRAS - 2  # beside mem and gpus


def offered(
    cpus: int,
    gpus: int | None = None,
    mem: int | str | None = None,
    named: Mapping[str, int] | None = None,
) -> tuple[dict[str, int], list[str]]:
    """A worker's extras, in the units of `Request.extras`, and what `loom-worker` is called with.

    LoomError where an argument is none that it takes.
    """
    options = ["--cpus", str(check_cpus(cpus).cpus)]
    extras: dict[str, int] = {}
    if gpus is not None:
        if isinstance(gpus, bool) or not isinstance(gpus, int) or not 0 <= gpus <= MAX_CPUS:
            raise LoomError(f"gpus={gpus!r}: a worker has whole gpus, from 0 to {MAX_CPUS}")
        extras[GPUS] = gpus * GPU_PARTS
        options += ["--gpus", str(gpus)]
    if mem is not None:
        extras[MEM] = parse_size(mem)
        options += ["--mem", str(extras[MEM])]
    named = named or {}
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named):
        raise LoomError(f'resources={named!r:.200}: write names and amounts, such as {{"fpga": 2}}')
    if len(named) > _MAX_NAMED:
        raise LoomError(f"{len(named)} named resources: a worker has at most {_MAX_NAMED}")
    for name in named:
        check_name(name)
    check_resources(**named)
    for name, amount in named.items():
        extras[name] = amount
        options += ["--resource", f"{name}={amount}"]
    return extras, options


def memory_option(memory: int | str | None) -> list[str]:
    """What stored objects may take."""
    return [] if memory is None else ["--memory", str(parse_size(memory))]


def plugin_options(load: Sequence[str], load_native: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Plugins as `loom-worker` is told of them; LoomError where an argument is no list of names."""
    if isinstance(load, str) or not all(isinstance(name, str) for name in load):
        raise LoomError(f'load={load!r:.200}: write a list of modules, such as ["my_module"]')
    if isinstance(load_native, str | os.PathLike):
        raise LoomError(f'load_native={load_native!r:.200}: write a list of libraries, such as ["libmine.so"]')
    libraries = [os.path.abspath(path) for path in load_native]
    return [f"--load={name}" for name in load] + [f"--load-native={path}" for path in libraries]


def check_plugins(load: Sequence[str], load_native: Sequence[str | os.PathLike[str]]) -> None:
    """PluginError, which is a LoomError, where a worker of this machine could not load one of them."""
    from loom.plugins.chosen import Plugins  # few need these
    from loom.plugins.describing import describe

    libraries = tuple(os.path.abspath(os.fspath(path)) for path in load_native)
    describe(Plugins(tuple(load), libraries), import_path())
