"""The gpus that a worker offers, by the names that CUDA_VISIBLE_DEVICES gives them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from loom.errors import LoomError
from loom.worker.claims import Claims

VISIBLE_DEVICES: Final = "CUDA_VISIBLE_DEVICES"

_PROGRAM: Final = "nvidia-smi"
_QUERY: Final = ("--query-gpu=index,uuid", "--format=csv,noheader")
_QUERY_S: Final = 10.0  # without the persistence daemon the driver starts for each query: seconds with many gpus

_log = logging.getLogger(__name__)


class Gpu(NamedTuple):
    """`name` is for CUDA_VISIBLE_DEVICES, `uuid` the same under any numbering (the name, where there is no uuid)."""

    name: str
    uuid: str


def choose_gpus(wanted: int | None, claims: Claims) -> tuple[str, ...]:
    """Names of the gpus to offer; those that other workers of this host have come last, and only if they are wanted.

    `wanted` None: all that are found and free. More than CUDA_VISIBLE_DEVICES names is a LoomError; without that
    variable, any number is offered: a worker may stand in for one that has them.
    """
    if wanted == 0:
        return ()
    visible = os.environ.get(VISIBLE_DEVICES)
    found = query_gpus()
    there = visible_gpus(found, visible)
    if wanted is None:
        free = [gpu for gpu in there if claims.take(_claim_name(gpu))] if found else []
        if found and len(free) < len(there):
            _log.info("%d of %d gpus belong to other workers of this host", len(there) - len(free), len(there))
        return tuple(gpu.name for gpu in free)
    if visible is not None and wanted > len(there):
        raise LoomError(
            f"--gpus {wanted}: {VISIBLE_DEVICES}={visible!r:.200} leaves {len(there)} of them to this worker;"
            " ask for no more, or change that variable"
        )
    return _choose(wanted, there, claims)


def _choose(wanted: int, there: list[Gpu], claims: Claims) -> tuple[str, ...]:
    free: list[Gpu] = []
    for gpu in there:
        if len(free) == wanted:
            break
        if claims.take(_claim_name(gpu)):
            free.append(gpu)
    taken = [gpu for gpu in there if gpu not in free][: wanted - len(free)]
    if taken:
        _log.warning(
            "--gpus %d: only %d of %d are free; others are shared with another worker of this host: %s",
            wanted,
            len(free),
            len(there),
            ", ".join(gpu.name for gpu in taken),
        )
    chosen = [gpu.name for gpu in there if gpu in free or gpu in taken]
    if len(chosen) < wanted:
        _log.warning("--gpus %d: %d found here; the worker offers so many all the same", wanted, len(there))
        others = (str(number) for number in range(wanted) if str(number) not in chosen)
        chosen += [next(others) for _ in range(wanted - len(chosen))]
    return tuple(chosen)


def _claim_name(gpu: Gpu) -> str:
    return f"gpu-{gpu.uuid}"


def visible_gpus(found: Sequence[Gpu], visible: str | None) -> list[Gpu]:
    """What of the gpus found CUDA_VISIBLE_DEVICES allows, under the names and in the order that it has.

    As in CUDA, what stands behind an entry that names no gpu does not count. Where none was found the entries are
    believed.
    """
    if visible is None:
        return list(found)
    allowed: dict[str, Gpu] = {}
    for entry in map(str.strip, visible.split(",")):
        gpu = _named(entry, found)
        if gpu is None:
            if found and entry not in ("", "-1"):
                _log.warning("%s=%s: there is no gpu %s here", VISIBLE_DEVICES, visible, entry)
            break
        allowed.setdefault(gpu.uuid, gpu)
    return list(allowed.values())


def _named(entry: str, found: Sequence[Gpu]) -> Gpu | None:
    """The gpu that an entry means: by index, by uuid or its beginning, or a part of one (MIG), which no query lists."""
    by_index = entry.isascii() and entry.isdigit()
    if entry.startswith("MIG-") or (not found and (by_index or entry.startswith("GPU-"))):
        return Gpu(entry, entry)
    if by_index:
        same = [gpu for gpu in found if int(gpu.name) == int(entry)]
    else:
        same = [gpu for gpu in found if entry.startswith("GPU-") and gpu.uuid.lower().startswith(entry.lower())]
    return Gpu(entry, same[0].uuid) if len(same) == 1 else None


def query_gpus() -> list[Gpu]:
    """What nvidia-smi lists, by index; nothing where it is missing, fails or takes too long."""
    program = shutil.which(_PROGRAM)
    if program is None:
        return []
    try:
        listed = _output(program)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("no gpus are offered, as %s cannot be asked: %s", program, error)
        return []
    gpus = []
    for line in listed.splitlines():
        index, _, uuid = map(str.strip, line.partition(","))
        if index.isascii() and index.isdigit() and uuid:
            gpus.append(Gpu(index, uuid))
        elif line.strip():
            _log.warning("%s said what is no gpu: %.100r", program, line)
    return gpus


def _output(program: str) -> str:
    """Its standard output. A program that is stuck in its driver is not waited for any longer than the limit."""
    process = subprocess.Popen(
        [program, *_QUERY],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=_QUERY_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode:
        raise subprocess.SubprocessError(f"it ended with status {process.returncode}: {text.strip()[-500:]}")
    return text
