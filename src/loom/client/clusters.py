"""Which cluster a client uses: one that it starts itself, one that it was given, or a server at an address."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loom.errors import ConnectError, LoomError
from loom.net.places import FixedPlace, Place
from loom.net.trust import Trust, find_trust

if TYPE_CHECKING:
    from loom.deploy.cluster import Cluster

_ENGINES: Final = {
    "ray": ("loom.deploy.ray_cluster", "RayCluster"),
    "dask": ("loom.deploy.dask_cluster", "DaskCluster"),
}


class Found(NamedTuple):
    """`owned`: the cluster that ends with the client."""

    place: Place
    trust: Trust
    owned: Cluster | None


def find_server(
    address: str | Cluster | None,
    port: int,
    offered: Mapping[str, Any],
    key_file: str | os.PathLike[str] | None,
    tls: bool,
    insecure: bool,
) -> Found:
    """`offered`: what the worker of a cluster of our own is to offer, by the names of Client's arguments.

    Raises LoomError where arguments do not go together, and what the start of a cluster raises.
    """
    if address is None:
        from loom.deploy.local import LocalCluster

        if insecure:
            find_trust(key_file, tls=tls, insecure=insecure)  # not both
        cluster: Cluster = LocalCluster(**offered, key_file=key_file, tls=tls, progress=False)
        return Found(*cluster.connection(), cluster)
    _check_offered(offered)
    if isinstance(address, str):
        engine = address.partition("://")[0] if "://" in address else ""
        if not engine:
            return Found(FixedPlace(address, port), find_trust(key_file, tls=tls, insecure=insecure), None)
        if engine not in _ENGINES:
            raise LoomError(
                f"{address!r}: an address is a host (the port is an argument of its own), ray://... or dask://..."
            )
        module, name = _ENGINES[engine]
        own = {} if key_file is None else {"key_file": key_file}
        cluster = getattr(import_module(module), name).from_url(address, **own)
        return Found(*cluster.connection(), cluster)
    if isinstance(address, type) or not hasattr(address, "connection"):
        raise ConnectError(
            f"{address!r:.200} is no address: write the name of a host, or give a cluster of loom.deploy"
        )
    if key_file is not None or tls or insecure:
        raise LoomError("key_file=, tls= and insecure= are arguments of the cluster, not of its clients")
    return Found(*address.connection(), None)


def _check_offered(offered: Mapping[str, object]) -> None:
    """LoomError where a client of a server was told what the worker of an embedded one is to offer."""
    for name in [name for name, value in offered.items() if value is not None]:
        option = "resource" if name == "resources" else name.replace("_", "-")
        raise LoomError(f"{name}= is for Client() without an address; workers of a server are given --{option}")
