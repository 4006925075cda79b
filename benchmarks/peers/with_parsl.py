"""Parsl: the HighThroughputExecutor with one manager of two workers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import cache
from time import perf_counter

import adapter
import parsl
import peer_tasks
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from submitted import Submit, Submitted


class Parsl(Submitted):
    def start(self) -> None:
        executor = HighThroughputExecutor(
            label="two",
            max_workers_per_node=adapter.N_WORKERS,
            cores_per_worker=1,
            address="127.0.0.1",
            provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
        )
        parsl.load(
            Config(
                executors=[executor],
                run_dir=tempfile.mkdtemp(),
                initialize_logging=False,
                usage_tracking=0,
                strategy="none",
            )
        )

    def stop(self) -> None:
        parsl.dfk().cleanup()
        parsl.clear()

    @cache  # noqa: B019  there is one of these, and it lives as long as the process
    def submitter(self, name: str) -> Submit:
        return parsl.python_app(getattr(peer_tasks, name))

    def wait(self, futures: Sequence[Future]) -> None:
        wait(futures)
        for future in futures:
            future.result()

    def transfer(self, size_bytes: int) -> float:
        """Results come to the client, and go from there to the next task."""
        made = self.submitter("make")(size_bytes)
        self.wait([made])
        began = perf_counter()
        found = self.submitter("length")(made).result()
        seconds = perf_counter() - began
        assert found == size_bytes
        return seconds

    def gather(self, size_bytes: int) -> float:
        """A result cannot be made without coming here, so making it is in."""
        began = perf_counter()
        content = self.submitter("make")(size_bytes).result()
        seconds = perf_counter() - began
        assert len(content) == size_bytes
        return seconds


if __name__ == "__main__":
    adapter.main(Parsl)
