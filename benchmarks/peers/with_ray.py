"""Ray: one node with two cores, started by the driver."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from time import perf_counter

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import adapter
import peer_tasks
import ray
from submitted import Submit, Submitted


class Ray(Submitted):
    directory = tempfile.gettempdir()  # a private one, since Ray opens it to everybody

    def start(self) -> None:
        ray.init(
            address="local",
            num_cpus=adapter.N_WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=self.directory,
        )

    def stop(self) -> None:
        ray.shutdown()

    @cache  # noqa: B019  there is one of these, and it lives as long as the process
    def submitter(self, name: str) -> Submit:
        return ray.remote(getattr(peer_tasks, name)).remote

    def wait(self, futures: Sequence[ray.ObjectRef]) -> None:
        ray.wait(list(futures), num_returns=len(futures), fetch_local=False)

    def transfer(self, size_bytes: int) -> float:
        """Both workers share one store."""
        made = self.submitter("make")(size_bytes)
        self.wait([made])
        began = perf_counter()
        found = ray.get(self.submitter("length")(made))
        seconds = perf_counter() - began
        assert found == size_bytes
        return seconds

    def gather(self, size_bytes: int) -> float:
        made = self.submitter("make")(size_bytes)
        self.wait([made])
        began = perf_counter()
        content = ray.get(made)
        seconds = perf_counter() - began
        assert len(content) == size_bytes
        return seconds


if __name__ == "__main__":
    adapter.main(Ray)
