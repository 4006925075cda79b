"""What a machine has is scarce or wrong: disk, memory, the clock."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import psutil

from chaos.client import Spec
from chaos.cluster import Setup
from chaos.faults.fault import Fault, Run
from chaos.faults.workers import WorkerKills

MIB: Final = 1 << 20


class DiskFull(Fault):
    name = "disk-full"
    about = "the directory of the workers is a tmpfs of 150 MB that something else fills up, and that is freed again"

    def missing(self) -> str:
        return "" if os.geteuid() == 0 else "needs root"

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.wdir = self._place / "wdir"
        if rng.random() < 0.7:
            setup.spill = self._place / "spill"
        spec.shapes = ["large", "large", "arrays", "tree"]
        spec.retries = 100
        spec.largest_bytes = 300_000  # all results together fit

    def before(self, directory: Path) -> None:
        self._place = directory / "small"
        mount(self._place, 150 * MIB)

    def act(self, run: Run) -> None:
        filler = self._place / "filler"
        for _ in range(10):
            if not run.between(0.2, 1.5):
                break
            room = run.rng.choice((0, 0, MIB // 2, 4 * MIB))
            run.cluster.strike(f"the disk is full, but for {room} bytes")
            fill(filler, room)
            run.between(0.5, 3)
            run.cluster.say("there is room again")
            filler.unlink()

    def after(self) -> None:
        unmount(self._place)


class SpillsAndKills(WorkerKills):
    name = "spills-and-kills"
    about = "workers have 16 MiB for objects in /dev/shm and move the rest to disk, while they are killed (-9)"

    _SHM: Final = Path("/dev/shm")

    def missing(self) -> str:
        return "" if os.access(self._SHM, os.W_OK) else f"needs {self._SHM}"

    def before(self, directory: Path) -> None:
        self._place = self._SHM / directory.name

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        setup.wdir = self._place
        setup.worker_options += ["--memory", "16MiB"]
        spec.shapes = ["large", "large", "arrays", "tree", "stencil"]
        spec.largest_bytes = 5_000_000

    def after(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)


def mount(place: Path, size_bytes: int) -> None:
    place.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "chaos", str(place)), check=True)


def unmount(place: Path) -> None:
    subprocess.run(("umount", "-l", str(place)), check=False)


def fill(filler: Path, room_bytes: int) -> None:
    """Until nothing more fits, then less by `room_bytes`."""
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
        file.truncate(max(file.tell() - room_bytes, 0))


class Clock(Fault):
    name = "clock"
    about = "the wall clock of all processes jumps an hour back and forth (libfaketime)"
    repeats = False

    _LIBRARIES: Final = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")

    def missing(self) -> str:
        return "" if self._library() else "needs libfaketime"

    def _library(self) -> str:
        return next((str(path) for name in self._LIBRARIES for path in Path("/").glob(name.lstrip("/"))), "")

    def prepare(self, setup: Setup, spec: Spec, rng: Random, directory: Path) -> None:
        self._file = directory / "clock"
        self._file.write_text("+0\n")
        setup.environment |= {
            "LD_PRELOAD": self._library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        setup.server_options += ["--worker-timeout", "3"]

    def act(self, run: Run) -> None:
        while run.between(0.5, 2):
            offset = run.rng.choice(("-1h", "+1h", "+0"))
            run.cluster.strike(f"the clock: {offset}")
            self._file.write_text(f"{offset}\n")

    def after(self) -> None:
        """The library itself leaves two files of each process."""
        for path in Path("/dev/shm").glob("*faketime_s*_*"):
            if not psutil.pid_exists(int(path.name.rpartition("_")[2])):
                path.unlink(missing_ok=True)
