"""How a process comes to a Ray, and to a server in it."""

from __future__ import annotations

import logging
import socket
from typing import Any, Final

from loom.deploy.cluster import close_all_first
from loom.deploy.ray_names import (
    SERVER,
    Actor,
    Settings,
    first_line,
    head_node,
    import_ray,
    living_nodes,
    namespace_of,
    on_node,
)
from loom.deploy.ray_server import ServerActor
from loom.deploy.saying import Says, counted
from loom.errors import DeployError

_REACH_S: Final = 5.0
_CONCURRENT: Final = 32  # calls at a time; they are short, and a worker's actor makes one every two seconds


def connect_ray(address: str | None, says: Says) -> bool:
    """Whether it was this that connected this process to Ray. DeployError with what Ray said."""
    ray = import_ray()
    close_all_first()  # before Ray does so
    connects = not ray.is_initialized()
    if connects:
        says.say(f"connecting to Ray at {address or 'whatever is here'}")
        if address not in (None, "auto", "local"):
            _check_address(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            why = "; ".join([first_line(error), *_cause(error)])
            raise DeployError(f"no Ray at {address or 'this machine'}: {why}") from error
    says.say(f"{counted(len(living_nodes()), 'node')} in Ray; {room(['CPU'])}")
    return connects


def _check_address(address: str) -> None:
    """DeployError where nobody listens there: Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise DeployError(
            f"{address}: Ray Client is not supported; run this on a node of the Ray cluster, with 'auto' "
            "or HOST:PORT of its head"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise DeployError(f"{address!r} is no address of a Ray: write HOST:PORT of its head node, 'auto' or 'local'")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except (OSError, OverflowError) as error:
        raise DeployError(f"there is no Ray at {address}: {error}; on one of its nodes 'auto' finds it") from error


def _cause(error: Exception) -> list[str]:
    """What is below what Ray says: the last line of a traceback that it has put into a message."""
    return [line.strip() for line in str(error.__cause__ or "").splitlines() if line.strip()][-1:]


def make_server(settings: Settings) -> Actor:
    """The actor of a new deployment. DeployError where there is one of that name."""
    ray = import_ray()
    options: dict[str, Any] = {}
    head = head_node()
    if head is not None:  # which stays longest
        options |= {"label_selector": on_node(head), "fallback_strategy": [{"label_selector": {}}]}
    if settings.runtime_env is not None:
        options["runtime_env"] = dict(settings.runtime_env)
    make = ray.remote(ServerActor).options(
        name=SERVER,
        namespace=namespace_of(settings.name),
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=_CONCURRENT,
        num_cpus=0,
        **options,
    )
    try:
        return make.remote(settings)
    except ValueError as error:
        raise DeployError(f"Ray does not start the server's actor: {first_line(error)}") from error


def scarcity(settings: Settings, n_waiting: int) -> str:
    """Why workers may not have come: what they take, and what there is."""
    needs = [f"{settings.cpus} CPU" if settings.cpus else "1 CPU or more"]
    needs += [f"{amount:g} {name}" for name, amount in settings.resources.items()]
    has = room(["CPU", *settings.resources])
    return f"{n_waiting} waiting in Ray; a worker takes {', '.join(needs)} of one node; {has}"


def room(names: list[str]) -> str:
    """What Ray has of these resources, in words."""
    ray = import_ray()
    all_of, free = ray.cluster_resources(), ray.available_resources()
    return "Ray has " + ", ".join(f"{all_of.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in names)
