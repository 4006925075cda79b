"""What a worker offers: cores, memory, gpus and named resources, and how its slots become cores and variables."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from loom.errors import LoomError
from loom.executors.environment import Variables
from loom.limits import MAX_EXTRA, MAX_EXTRAS
from loom.resources import GPU_PARTS, GPUS, MEM, check_name, parse_size
from loom.worker.claims import Claims
from loom.worker.gpus import VISIBLE_DEVICES, choose_gpus

_OWN_OPTIONS: Final = 2  # of the extras: mem and gpus

_log = logging.getLogger(__name__)


class Hardware:
    """What one worker has. `cores`: the ids of its cores by slot, none where its tasks are not pinned; `gpus`: the
    names of its gpus by slot; `extras`: amounts beside cores, as in `Request.extras`.

    The cores and gpus are this worker's until `close`.
    """

    def __init__(
        self, cpus: int, cores: Sequence[int], gpus: Sequence[str], extras: Mapping[str, int], claims: Claims
    ) -> None:
        assert len(cores) in (0, cpus)
        self.cpus = cpus
        self.cores = tuple(cores)
        self.gpus = tuple(gpus)
        self.extras = {name: amount for name, amount in sorted(extras.items()) if amount}
        self._claims = claims
        self._allowed = os.sched_getaffinity(0)  # of the worker's own thread
        self._at_home = False
        self._core_ids: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._variables: dict[tuple[int, tuple[int, ...]], Variables] = {}

    def close(self) -> None:
        self._claims.close()

    def core_ids(self, slots: tuple[int, ...]) -> tuple[int, ...]:
        """The cores to pin to; none where the task is not to be pinned."""
        if not self.cores or not slots:
            return ()
        ids = self._core_ids.get(slots)
        if ids is None:
            ids = self._core_ids[slots] = tuple(self.cores[slot] for slot in slots)
        return ids

    def stay_at_home(self) -> bool:
        """Whether this thread keeps to the worker's cores from now on, so that programs have them from their start.

        A worker of one core runs one program after the other and waits for each, so that it loses nothing on the
        program's own core: two such workers on two otherwise quiet cores ran /bin/true 7 % more often than unpinned
        ones; with each program pinned after its start, 3 % less often (medians of 30 runs of 500). With more cores the
        worker has work while programs run.
        """
        if len(self.cores) != 1:
            return False
        if not self._at_home:
            self._at_home = _keep_to(self.cores)
        return self._at_home

    def leave_home(self) -> None:
        """Run anywhere again: beside a function on its core the worker would be in its way."""
        if self._at_home:
            self._at_home = not _keep_to(self._allowed)

    def variables(self, threads: int, gpus: tuple[int, ...]) -> Variables:
        """What the process of a task gets beyond the worker's own environment; `threads` 0: the number is its own."""
        if not threads and not gpus:
            return ()
        found = self._variables.get((threads, gpus))
        if found is None:
            omp = (("OMP_NUM_THREADS", str(threads)),) if threads else ()
            cuda = ((VISIBLE_DEVICES, ",".join(self.gpus[slot] for slot in gpus)),) if gpus else ()
            found = self._variables[threads, gpus] = omp + cuda
        return found


def find_hardware(
    cpus: int | None = None,
    gpus: int | None = None,
    mem: int | str | None = None,
    named: Mapping[str, int] | None = None,
    pin: bool = True,
) -> Hardware:
    """What this process may use, as far as the arguments do not say otherwise. LoomError where they cannot be met."""
    allowed = sorted(os.sched_getaffinity(0))
    n_cpus = cpus or len(allowed)
    memory = memory_bytes() if mem is None else parse_size(mem)
    claims = Claims()
    try:
        devices = choose_gpus(gpus, claims)
    except LoomError:
        claims.close()
        raise
    cores = _choose_cores(n_cpus, allowed, claims, pin)
    extras = {**(named or {}), MEM: memory, GPUS: len(devices) * GPU_PARTS}
    return Hardware(n_cpus, cores, devices, extras, claims)


def _keep_to(cores: Collection[int]) -> bool:
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:  # the core was taken away
        _log.debug("the worker cannot keep to cores %s: %s", cores, error)
        return False
    return True


def _choose_cores(cpus: int, allowed: Sequence[int], claims: Claims, pin: bool) -> tuple[int, ...]:
    if not pin:
        _log.info("tasks are not pinned to cores: --nopin")
        return ()
    if cpus > len(allowed):
        _log.info("tasks are not pinned to cores: --cpus %d, and %d may be used here", cpus, len(allowed))
        return ()
    cores = claims.take_cores(cpus, allowed)
    if cores:
        _log.info("tasks are pinned to cores %s", ", ".join(map(str, cores)))
    else:
        _log.info("tasks are not pinned to cores: other workers of this host have too many of them to leave %d", cpus)
    return cores


def parse_named(options: Iterable[str]) -> dict[str, int]:
    """Named resources from `name=n`; LoomError where one is written in another way, or twice."""
    named: dict[str, int] = {}
    for option in options:
        name, equals, amount = option.rpartition("=")
        if not equals or not (amount.isascii() and amount.isdigit()) or int(amount) > MAX_EXTRA:
            raise LoomError(f"{option!r:.200}: write a name and a whole number, such as fpga=2")
        check_name(name)
        if name in named:
            raise LoomError(f"the resource {name!r} is given twice")
        named[name] = int(amount)
    if len(named) > MAX_EXTRAS - _OWN_OPTIONS:
        raise LoomError(f"{len(named)} named resources: a worker has at most {MAX_EXTRAS - _OWN_OPTIONS}")
    return named


def memory_bytes(root: Path = Path("/")) -> int:
    """The least of the machine's memory and the limits of the control groups (v1 and v2) that this process is in."""
    limits = [_physical_bytes(root)]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            limits += _limits(mounted, path, "memory.max")
            limits += _limits(mounted / "unified", path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(mounted / "memory", path, "memory.limit_in_bytes")
    return min(limits)


def _physical_bytes(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(mounted: Path, group: str, file: str) -> list[int]:
    """The limits of a group and of all above it. In a container the group's path may be one of the host's, of which
    only the end of the way up is there.
    """
    inside = PurePosixPath(group.lstrip("/"))
    if ".." in inside.parts:
        inside = PurePosixPath()
    limits = []
    for directory in (inside, *inside.parents):
        try:
            text = (mounted / directory / file).read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # else "max"
            limits.append(int(text))
    return limits
