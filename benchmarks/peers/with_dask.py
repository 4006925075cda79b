"""dask.distributed: a scheduler and two workers of one thread, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from time import perf_counter

import adapter
import dask
import distributed
import peer_tasks

_START_S = 60.0
_CLOSE_S = 2.0
_PAUSE_S = 0.01


class Dask:
    def start(self) -> None:
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})
        self._processes: list[subprocess.Popen[bytes]] = []
        self._n_graphs = 0
        directory = tempfile.mkdtemp()
        file = os.path.join(directory, "scheduler.json")
        common = ["--scheduler-file", file, "--host", "127.0.0.1"]
        self._spawn("dask_scheduler", *common, "--port", "0", "--no-dashboard", "--no-show")
        for _ in range(adapter.N_WORKERS):
            options = ["--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", directory]
            self._spawn("dask_worker", *common, *options)
        deadline = time.monotonic() + _START_S
        while not os.path.exists(file) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        self.client = distributed.Client(scheduler_file=file)
        self.client.wait_for_workers(adapter.N_WORKERS, timeout=_START_S)
        self._workers = list(self.client.scheduler_info()["workers"])

    def _spawn(self, module: str, *options: str) -> None:
        self._processes.append(subprocess.Popen([sys.executable, "-m", f"distributed.cli.{module}", *options]))

    def stop(self) -> None:
        self.client.close(timeout=_CLOSE_S)
        for process in self._processes:
            process.kill()  # asked to end, some take a minute over it
        for process in self._processes:
            process.wait()

    def bag(self, n: int) -> float:
        return self._map(peer_tasks.noop, range(n))

    def uneven(self, durations: list[float]) -> float:
        return self._map(peer_tasks.busy, durations)

    def external(self, n: int) -> float:
        return self._map(peer_tasks.external, range(n))

    def _map(self, function, arguments) -> float:
        began = perf_counter()
        futures = self.client.map(function, arguments, pure=False)
        distributed.wait(futures)
        return perf_counter() - began

    def chain(self, n: int) -> float:
        began = perf_counter()
        name = self._name()
        graph = {(name, 0): (peer_tasks.noop, 0)}
        for i in range(1, n):
            graph[name, i] = (peer_tasks.noop, (name, i - 1))
        return self._wait(began, graph, [(name, n - 1)])

    def tree(self, n_leaves: int) -> float:
        began = perf_counter()
        name = self._name()
        level = [(name, 0, i) for i in range(n_leaves)]
        graph = {key: (peer_tasks.noop, key[2]) for key in level}
        while len(level) > 1:
            above = [(name, level[0][1] + 1, i) for i in range(len(level) // 2)]
            for i, key in enumerate(above):
                graph[key] = (peer_tasks.noop, level[2 * i], level[2 * i + 1])
            level = above
        return self._wait(began, graph, level)

    def stencil(self, width: int, steps: int, seconds: float) -> float:
        began = perf_counter()
        name = self._name()
        graph = {(name, 0, i): (peer_tasks.busy, seconds) for i in range(width)}
        for step in range(1, steps):
            for i in range(width):
                inputs = [(name, step - 1, place) for place in peer_tasks.neighbours(i, width)]
                graph[name, step, i] = (peer_tasks.busy, seconds, *inputs)
        return self._wait(began, graph, [(name, steps - 1, i) for i in range(width)])

    def _name(self) -> str:
        """Of a graph: a task of a name that the scheduler knows would not run again."""
        self._n_graphs += 1
        return f"graph{self._n_graphs}"

    def _wait(self, began: float, graph: dict, keys: list) -> float:
        futures = self.client.get(graph, keys, sync=False)
        distributed.wait(futures)
        return perf_counter() - began

    def transfer(self, size_bytes: int) -> float:
        made = self._made(size_bytes)
        began = perf_counter()
        found = self.client.submit(peer_tasks.length, made, workers=[self._workers[1]], pure=False).result()
        seconds = perf_counter() - began
        assert found == size_bytes
        return seconds

    def gather(self, size_bytes: int) -> float:
        made = self._made(size_bytes)
        began = perf_counter()
        content = made.result()
        seconds = perf_counter() - began
        assert len(content) == size_bytes
        return seconds

    def _made(self, size_bytes: int):
        made = self.client.submit(peer_tasks.make, size_bytes, workers=[self._workers[0]], pure=False)
        distributed.wait(made)
        return made


if __name__ == "__main__":
    adapter.main(Dask)
