"""Where server and workers come from: this machine, other hosts, batch systems, other engines.

Every kind of cluster has the same interface (see `cluster.Cluster`), and `Client(cluster)` uses it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from loom.deploy.cluster import Cluster as Cluster
    from loom.deploy.dask_cluster import DaskCluster as DaskCluster
    from loom.deploy.local import LocalCluster as LocalCluster
    from loom.deploy.pbs import PBSCluster as PBSCluster
    from loom.deploy.ray_cluster import RayCluster as RayCluster
    from loom.deploy.slurm import SlurmCluster as SlurmCluster
    from loom.deploy.ssh import SSHCluster as SSHCluster
    from loom.deploy.status import Status as Status

_MODULES: Final = {
    "Cluster": "cluster",
    "DaskCluster": "dask_cluster",
    "LocalCluster": "local",
    "PBSCluster": "pbs",
    "RayCluster": "ray_cluster",
    "SlurmCluster": "slurm",
    "SSHCluster": "ssh",
    "Status": "status",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    """Each is imported when it is used: they need this and that, which others do not."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'loom.deploy' has no attribute {name!r}")
    return getattr(import_module(f"loom.deploy.{module}"), name)


def __dir__() -> list[str]:
    return __all__
