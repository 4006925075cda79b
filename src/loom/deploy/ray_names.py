"""What both ends of a Loom on Ray share: names, settings, and how Ray is asked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from loom.errors import ConnectError, DeployError, LoomException

SERVER: Final = "server"  # the actor; in a namespace of the deployment, where workers have names of their own
_OLDEST: Final = (2, 53)  # before, actors could not be asked to be on a node if possible
_NODE_LABEL: Final = "ray.io/node-id"  # that Ray gives every node
_HEAD: Final = "node:__internal_head__"  # a resource of the head node alone
_ASK_S: Final = 10.0
_END_S: Final = 20.0  # until actors have ended what they host
_GONE_S: Final = 20.0
_LOOK_S: Final = 0.05

Ray = ModuleType
Actor = Any  # a handle; Ray's are not typed


@dataclass(frozen=True)
class Settings:
    """Of one deployment. `cpus`: of each worker; None: all that are free at its node when it is placed. `n_workers`:
    None is one on each node. `resources`: more that Ray reserves for each worker, by Ray's names. `options` are more of
    those of `loom-worker` and `loom-server`. `lease_s`: it ends when nobody has used it for so long; None: never.

    No secrets: Ray shows what actors are given.
    """

    name: str
    version: str
    n_workers: int | None
    cpus: int | None
    resources: Mapping[str, float]
    extras: Mapping[str, int]
    worker_options: tuple[str, ...]
    server_options: tuple[str, ...]
    journal: str | None
    key_file: str | None
    runtime_env: Mapping[str, Any] | None
    lease_s: float | None


def import_ray() -> Ray:
    """DeployError where it is not installed."""
    oldest = ".".join(map(str, _OLDEST))
    try:
        import ray
    except ImportError as error:
        raise DeployError(f"Ray is not installed here ({error}): pip install 'ray>={oldest}'") from error
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < _OLDEST:
        raise DeployError(f"Ray {ray.__version__} is too old: pip install 'ray>={oldest}'")
    return ray  # type: ignore[no-any-return]


def namespace_of(name: str) -> str:
    return f"loom-{name}"


def find_server(name: str) -> Actor:
    """The actor of that deployment. ValueError where there is none."""
    return import_ray().get_actor(SERVER, namespace=namespace_of(name))


def ask(actor: Actor, question: str, *arguments: object, timeout_s: float = _ASK_S) -> Any:
    """What a method of an actor returns. Raises what it raised if that is a LoomException; ConnectError where it does
    not answer now, and DeployError where it is gone for good.
    """
    ray = import_ray()
    try:
        return ray.get(getattr(actor, question).remote(*arguments), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise ConnectError(f"the actor has not answered within {timeout_s:g} s") from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LoomException):
            raise error.cause from None
        raise DeployError(f"the actor failed: {error}") from error
    except ray.exceptions.ActorDiedError as error:
        raise DeployError(died(error)) from error
    except ray.exceptions.RayError as error:
        raise ConnectError(f"the actor does not answer: {first_line(error)}") from error


def died(error: Exception) -> str:
    """Why an actor is gone, as Ray says it. Of one that failed when it was made, what it raised."""
    cause = getattr(error, "cause", None)
    for inner in (cause, getattr(cause, "cause", None), error.__cause__):
        if isinstance(inner, LoomException):
            return str(inner)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if ".errors." in line and "Error: " in line]
    if raised:
        return raised[-1].partition("Error: ")[2]
    return f"Ray says: {' '.join(lines)[:600]}"


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def on_node(node_id: str) -> dict[str, str]:
    """Ray's label selector of that node."""
    return {_NODE_LABEL: node_id}


def living_nodes() -> dict[str, dict[str, Any]]:
    """By id, those that Ray counts as alive; as `ray.nodes()` describes them."""
    return {node["NodeID"]: node for node in import_ray().nodes() if node["Alive"]}


def head_node() -> str | None:
    return next((found for found, node in living_nodes().items() if _HEAD in node["Resources"]), None)


def free_by_node() -> dict[str, dict[str, float]]:
    """What each living node has that nobody has reserved."""
    import_ray()
    from ray._private.state import available_resources_per_node  # for developers, and the only one there is

    alive = living_nodes()
    return {found: free for found, free in available_resources_per_node().items() if found in alive}


def groups_of(name: str) -> dict[str, dict[str, Any]]:
    """The placement groups of a deployment that have not been removed, by the names of their workers."""
    import_ray()
    from ray.util.placement_group import placement_group_table

    found = {}
    for group in placement_group_table().values():
        prefix, _, worker = group["name"].partition("/")
        if prefix == namespace_of(name) and group["state"] != "REMOVED":
            found[worker] = group
    return found


def group_name(name: str, worker: str) -> str:
    return f"{namespace_of(name)}/{worker}"


def actors_of(name: str) -> list[str]:
    """The names of a deployment's actors."""
    listed = import_ray().util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in listed if actor["namespace"] == namespace_of(name)]


def remove_group(group: Mapping[str, Any]) -> None:
    """As `groups_of` describes it; with the actor in it."""
    import_ray()
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group["placement_group_id"]))))


def end_actors(name: str, workers: Iterable[str], *, in_order: bool) -> None:
    """Remove actors. `in_order`: they end what they host first, and have some seconds for that."""
    ray = import_ray()
    found = []
    for worker in workers:
        try:
            found.append(ray.get_actor(worker, namespace=namespace_of(name)))
        except ValueError:  # it is gone already
            continue
    if in_order and found:
        ended = [actor.close.remote() for actor in found]
        ray.wait(ended, num_returns=len(ended), timeout=_END_S, fetch_local=False)
    for actor in found:
        ray.kill(actor, no_restart=True)


def remove_all(name: str, *, by_server: bool = False) -> None:
    """Actors, placement groups, what was noted. DeployError where Ray does not let go of them.

    `by_server`: the server's actor does it, and ends with it; else that goes first, as it would start others.
    """
    import_ray()
    if not by_server:
        end_actors(name, [SERVER], in_order=False)
    groups = groups_of(name)
    waiting = [worker for worker, group in groups.items() if group["state"] != "CREATED"]
    end_actors(name, waiting, in_order=False)
    end_actors(name, [actor for actor in actors_of(name) if actor != SERVER], in_order=True)
    for group in groups.values():
        remove_group(group)
    forget(name)
    end_actors(name, [SERVER], in_order=False)
    deadline = time.monotonic() + _GONE_S
    while left := [*actors_of(name), *groups_of(name)]:
        if time.monotonic() > deadline:
            raise DeployError(f"Ray still has, {_GONE_S:g} s after they were removed: {', '.join(left)}")
        time.sleep(_LOOK_S)


def note(name: str, what: bytes) -> None:
    """Kept by Ray for a server that is started again."""
    import_ray()
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(namespace_of(name).encode(), what, overwrite=True, namespace=b"loom")


def noted(name: str) -> bytes | None:
    import_ray()
    from ray.experimental.internal_kv import _internal_kv_get

    found: bytes | None = _internal_kv_get(namespace_of(name).encode(), namespace=b"loom")
    return found


def forget(name: str) -> None:
    import_ray()
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(namespace_of(name).encode(), namespace=b"loom")
