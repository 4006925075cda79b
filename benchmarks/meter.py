"""What a run takes: wall time, CPU time and memory of all its processes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

_SHORT_S = 0.2  # in so short a block a few ticks of the kernel would look like company

Processes = Callable[[], list[psutil.Process]]


def below(pids: Iterable[int]) -> list[psutil.Process]:
    """These processes and all their descendants; those that are gone are left out."""
    found: list[psutil.Process] = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def own_tree() -> list[psutil.Process]:
    """This process and its descendants."""
    return below([psutil.Process().pid])


class Meter:
    """Measures a `with` block: wall time, CPU time of `processes`, CPU that everybody else used, peak memory.

    CPU times come in ticks of the kernel, usually 10 ms; those of processes that have ended and were waited for are in.
    Peak memory is taken where `processes` are given: the sum of each one's highest resident set (RSS) in the block, so
    pages that several of them share count for each. Entered again it starts anew.
    """

    def __init__(self, processes: Processes | None = None) -> None:
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self.others_cores = 0.0
        self.peak_bytes = 0
        self.parts: dict[str, float] = {}
        self.curve: list[tuple[float, float]] = []
        self._processes = processes or own_tree
        self._with_memory = processes is not None

    def of(self, processes: Processes) -> Meter:
        """Measure these instead, memory too."""
        self._processes, self._with_memory = processes, True
        return self

    def __enter__(self) -> Meter:
        gc.collect()  # what earlier runs have left is not this one's
        self.parts = {}
        self.others_cores = 0.0
        processes = self._processes()
        if self._with_memory:
            _reset_peaks(processes)
        self._machine_s = _machine_cpu_s()
        self._cpu_s = _cpu_s(processes)
        self._began = self._last = time.perf_counter()
        return self

    def part(self, name: str) -> None:
        """What came since the last part, or the beginning, goes under this name, in seconds."""
        now = time.perf_counter()
        self.parts[name] = now - self._last
        self._last = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wall_s = time.perf_counter() - self._began
        processes = self._processes()
        self.cpu_s = max(0.0, _cpu_s(processes) - self._cpu_s)
        if self.wall_s > _SHORT_S:
            self.others_cores = max(0.0, _machine_cpu_s() - self._machine_s - self.cpu_s) / self.wall_s
        if self._with_memory:
            self.peak_bytes = sum(peak_bytes(process.pid) for process in processes)


def _cpu_s(processes: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it has just ended
        total += times.user + times.system + times.children_user + times.children_system
    return float(total)


def _machine_cpu_s() -> float:
    """Of the whole machine; what a hypervisor took away counts as used."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _reset_peaks(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        reset_peak(process.pid)


def reset_peak(pid: int) -> None:
    """From now on `peak_bytes` counts."""
    with suppress(OSError):  # it has just ended
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The largest resident set of a process since `reset_peak`; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.split("VmHWM:")[1].split()[0]) << 10 if "VmHWM:" in status else 0  # a zombie has none
