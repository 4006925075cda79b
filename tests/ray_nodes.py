"""A real Ray cluster on this machine: two nodes of one cpu each, with which this process is connected."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from clusters import eventually
from deploy.needs import unless_all
from loom.client import Client
from loom.deploy import RayCluster
from loom.deploy.ray_names import namespace_of

# A node that was killed is noticed within some 3 s, not 15.
_HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 1000}


class RayNodes:
    """`cluster` is of ray.cluster_utils."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.added = [self.add()]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1)

    def kill(self, node: Any) -> None:
        """Its processes, at once; Ray has to find out by itself."""
        self.cluster.remove_node(node, allow_graceful=False)

    def free_cpus(self) -> float:
        import ray

        return float(ray.available_resources().get("CPU", 0))

    def demands(self) -> list[dict[str, float]]:
        """What Ray's autoscaler is told to make room for."""
        from ray.autoscaler.v2.sdk import get_cluster_status

        groups = get_cluster_status(self.address).resource_demands.placement_group_demand
        return [bundle.bundle for group in groups for bundle in group.bundles_by_count]

    def n_nodes(self) -> int:
        import ray

        return sum(node["Alive"] for node in ray.nodes())


def needs_ray() -> None:
    if find_spec("ray") is None:
        unless_all("there is no Ray here: pip install 'hyperloom[ray]'")


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    needs_ray()
    import ray
    from ray.cluster_utils import Cluster

    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # of sockets, whose paths have to be short
    head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": directory, "_system_config": _HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = RayNodes(cluster)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        yield nodes
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def engine(directory: Path) -> Iterator[Client]:
    """A client of Loom on it; afterwards nothing of Loom is left in Ray."""
    with ray_nodes() as nodes:
        with RayCluster(progress=False, worker_options=("--wdir", str(directory))) as cluster:
            with Client(cluster) as client:
                yield client
            left = hosted(cluster)
        assert_nothing_left(nodes, cluster, left)


def actors(name: str) -> dict[str, dict[str, Any]]:
    """Those of a deployment that Ray knows of, by name; the last one of each."""
    from ray._private.state import actors

    found = [actor for actor in actors().values() if actor["Name"] and name in _namespaces().get(actor["Name"], "")]
    return {actor["Name"]: actor for actor in sorted(found, key=lambda one: one["State"] != "DEAD")}


def _namespaces() -> dict[str, str]:
    import ray

    return {actor["name"]: actor["namespace"] for actor in ray.util.list_named_actors(all_namespaces=True)}


def process_of(cluster: RayCluster, name: str) -> psutil.Process:
    """Of an actor that runs."""

    def found() -> int:
        actor = actors(cluster.name).get(name, {})
        return int(actor["Pid"]) if actor.get("State") == "ALIVE" else 0

    return psutil.Process(eventually(found, what=f"the actor {name}"))


def worker_names(cluster: RayCluster) -> list[str]:
    return [worker.name for worker in cluster.status().workers if worker.state == "running"]


class Hosted(NamedTuple):
    """Processes, and the private directories of what runs in them."""

    processes: list[psutil.Process]
    directories: set[str]


def hosted(cluster: RayCluster) -> Hosted:
    """The actors' processes, and what is below them."""
    found = Hosted([], set())
    for name in actors(cluster.name):
        process = process_of(cluster, name)
        for one in (process, *process.children(recursive=True)):
            found.processes.append(one)
            found.directories.update(os.path.dirname(word) for word in one.cmdline() if word.endswith("/address"))
    return found


def assert_nothing_left(nodes: RayNodes, cluster: RayCluster, left: Hosted | None = None) -> None:
    """No actor, no place that is reserved, none of these processes, none of their directories."""
    import ray
    from ray.util.placement_group import placement_group_table

    namespace = namespace_of(cluster.name)
    assert namespace not in [actor["namespace"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    groups = [group for group in placement_group_table().values() if group["name"].startswith(namespace)]
    assert {group["state"] for group in groups} <= {"REMOVED"}
    eventually(lambda: nodes.free_cpus() == nodes.n_nodes(), what="the cpus that were reserved")
    if left is not None:
        assert left.directories
        eventually(lambda: not [p for p in left.processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])
        eventually(lambda: not [path for path in left.directories if os.path.exists(path)])
