"""HyperQueue by its Python API: LocalCluster with two workers of one core; server and workers are in this process.

A task is a process: /bin/true where others call a function that does nothing, a fresh interpreter where a task
computes. Waiting for a job looks once a second, so short jobs come out too long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from time import perf_counter

import adapter
import hyperqueue
import hyperqueue.client
import peer_tasks
from hyperqueue.cluster import LocalCluster, WorkerConfig

_NOTHING = ["/bin/true"]


class HyperQueue:
    def start(self) -> None:
        hyperqueue.client.create_progress_callback = lambda: lambda _: None  # the bar is not what is measured
        self._cluster = LocalCluster(worker_config=WorkerConfig(cores=1))
        for _ in range(adapter.N_WORKERS - 1):
            self._cluster.start_worker(WorkerConfig(cores=1))
        self._client = self._cluster.client()

    def stop(self) -> None:
        self._cluster.stop()

    def _run(self, fill: Callable[[hyperqueue.Job], None]) -> float:
        began = perf_counter()
        job = hyperqueue.Job()
        fill(job)
        submitted = self._client.submit(job)
        if not self._client.wait_for_jobs([submitted]):
            raise RuntimeError("tasks failed")
        seconds = perf_counter() - began
        self._client.forget(submitted)
        return seconds

    def bag(self, n: int) -> float:
        return self._programs([_NOTHING] * n)

    def uneven(self, durations: Sequence[float]) -> float:
        return self._programs([_busy(duration) for duration in durations])

    def external(self, n: int) -> float:
        return self._programs([_NOTHING] * n)

    def _programs(self, programs: Sequence[list[str]]) -> float:
        def fill(job: hyperqueue.Job) -> None:
            for program in programs:
                _add(job, program)

        return self._run(fill)

    def chain(self, n: int) -> float:
        def fill(job: hyperqueue.Job) -> None:
            last = _add(job, _NOTHING)
            for _ in range(n - 1):
                last = _add(job, _NOTHING, [last])

        return self._run(fill)

    def tree(self, n_leaves: int) -> float:
        def fill(job: hyperqueue.Job) -> None:
            level = [_add(job, _NOTHING) for _ in range(n_leaves)]
            while len(level) > 1:
                level = [_add(job, _NOTHING, level[i : i + 2]) for i in range(0, len(level), 2)]

        return self._run(fill)

    def stencil(self, width: int, steps: int, seconds: float) -> float:
        program = _busy(seconds) if seconds else _NOTHING

        def fill(job: hyperqueue.Job) -> None:
            row = [_add(job, program) for _ in range(width)]
            for _ in range(steps - 1):
                row = [
                    _add(job, program, [row[place] for place in peer_tasks.neighbours(i, width)]) for i in range(width)
                ]

        return self._run(fill)


def _add(job: hyperqueue.Job, program: list[str], inputs: Sequence = ()):
    return job.program(program, deps=list(inputs), stdout=None, stderr=None)


def _busy(seconds: float) -> list[str]:
    return [sys.executable, "-I", "-S", peer_tasks.__file__, str(seconds)]


if __name__ == "__main__":
    adapter.main(HyperQueue)
