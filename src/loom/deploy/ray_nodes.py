"""Workers as actors: each has a placement group of one bundle, so that Ray has reserved its cpus wherever it is placed.

As long as nodes with room have no worker, each gets one. What is wanted beyond that waits in Ray, which may have an
autoscaler that starts a node for it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from loom.deploy.nodes import Node, NodeState, Offer
from loom.deploy.ray_names import (
    Actor,
    Settings,
    died,
    end_actors,
    first_line,
    free_by_node,
    group_name,
    groups_of,
    import_ray,
    living_nodes,
    namespace_of,
    on_node,
    remove_group,
)
from loom.deploy.ray_worker import WorkerActor
from loom.errors import DeployError

_RESTARTS: Final = 4  # by Ray, of one actor; after that the keeper starts another one, with its pauses
_CONCURRENT: Final = 4
_ANSWER_S: Final = 0.1
_PATIENCE_S: Final = 30.0  # somebody else took the room at a node before this actor did


@dataclass
class _Worker:
    """`target`: the node that it has to be on; `node`: the one that it is on. `asked`: a question under way."""

    actor: Actor
    cpus: int
    target: str = ""
    node: str = ""
    asked: Any = None
    answered: bool = False
    since: float = 0.0


class RayNodes:
    """The provider. Takes over the actors that there are already: the server's actor may have been restarted."""

    what = "actor"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ray = import_ray()
        self._workers: dict[str, _Worker] = {}
        for name, group in groups_of(settings.name).items():
            if group["state"] == "CREATED":
                with suppress(ValueError):
                    actor = self._ray.get_actor(name, namespace=namespace_of(settings.name))
                    self._workers[name] = _Worker(actor, int(group["bundles"][0]["CPU"]), since=time.monotonic())
                    continue
            remove_group(group)  # with the actor that waits for it; it is started anew where it is wanted

    @property
    def offer(self) -> Offer:
        return Offer(self._settings.cpus or self._most_cpus(), self._settings.extras)

    def n_places(self) -> int:
        """Actors that there are, and nodes with room that have none."""
        return len(self._workers) + len(self._places())

    def launch(self, count: int) -> None:
        places = self._places()
        for _ in range(count):
            node, cpus = places.pop(0) if places else ("", self._settings.cpus or self._most_cpus())
            try:
                self._launch(node, cpus)
            except (self._ray.exceptions.RayError, ValueError) as error:
                raise DeployError(f"Ray does not start an actor: {first_line(error)}") from error

    def nodes(self) -> list[Node]:
        try:
            alive = living_nodes()
            groups = groups_of(self._settings.name)
        except self._ray.exceptions.RayError as error:
            raise DeployError(f"Ray does not say what there is: {first_line(error)}") from error
        self._ask_all()
        found = []
        ended = []
        for name, worker in self._workers.items():
            state, story = self._look(worker, groups.get(name), alive)
            found.append(Node(name, state, (name,), story))
            if state == "ended":
                ended.append(name)
        self._remove(ended, in_order=False)
        return found

    def end(self, nodes: Sequence[Node]) -> None:
        for in_order in (False, True):
            self._remove([n.id for n in nodes if (n.state == "running") is in_order], in_order=in_order)

    def close(self) -> None:
        self.end([Node(name, "running" if worker.node else "waiting", ()) for name, worker in self._workers.items()])

    # -- Places -------------------------------------------------------------------------------------------------------

    def _places(self) -> list[tuple[str, int]]:
        """Nodes with room for a worker that have none, with the cpus of one there; those with the most free first."""
        taken = {worker.node or worker.target for worker in self._workers.values()}
        needed = self._needed(self._settings.cpus or 1)
        places = []
        for node, free in free_by_node().items():
            if node not in taken and all(free.get(name, 0) >= amount for name, amount in needed.items()):
                places.append((int(free["CPU"]), node))
        return [(node, self._settings.cpus or n_free) for n_free, node in sorted(places, reverse=True)]

    def _needed(self, cpus: int) -> dict[str, float]:
        return {"CPU": cpus, **self._settings.resources}

    def _most_cpus(self) -> int:
        """Of a node, whether they are free or not: what another one of them may be expected to have."""
        return max((int(node["Resources"].get("CPU", 0)) for node in living_nodes().values()), default=1) or 1

    # -- Actors -------------------------------------------------------------------------------------------------------

    def _launch(self, node: str, cpus: int) -> None:
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        settings = self._settings
        name = f"ray-{secrets.token_hex(4)}"
        needed = self._needed(cpus)
        group = placement_group(
            [needed],
            name=group_name(settings.name, name),
            lifetime="detached",
            **({"bundle_label_selector": [on_node(node)]} if node else {}),
        )
        more = {resource: amount for resource, amount in needed.items() if resource not in ("CPU", "GPU")}
        actor = self._ray.remote(WorkerActor).options(
            name=name,
            namespace=namespace_of(settings.name),
            lifetime="detached",  # it outlives the server's actor, with what it holds, until that is restarted
            num_cpus=cpus,
            num_gpus=needed.get("GPU", 0),
            resources=more,
            max_restarts=_RESTARTS,
            max_concurrency=_CONCURRENT,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
            **({} if settings.runtime_env is None else {"runtime_env": dict(settings.runtime_env)}),
        )
        self._workers[name] = _Worker(actor.remote(settings, name, cpus), cpus, node, since=time.monotonic())

    def _ask_all(self) -> None:
        """Those that run answer at once; one that waits, or is being restarted, does so in a later turn."""
        for worker in self._workers.values():
            if worker.asked is None:
                worker.asked = worker.actor.state.remote()
        asked = [worker.asked for worker in self._workers.values()]
        if asked:
            self._ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S)

    def _look(
        self, worker: _Worker, group: dict[str, Any] | None, alive: dict[str, dict[str, Any]]
    ) -> tuple[NodeState, str]:
        if group is None:
            return "ended", "was removed from Ray by somebody"
        if group["state"] == "CREATED":
            worker.node = next(iter(group["bundles_to_node_id"].values()))
        where = worker.node or worker.target
        if group["state"] == "RESCHEDULING" or (where and where not in alive):
            return "ended", f"was on the node {where[:8]}, which has left Ray"
        if worker.target and not worker.node and time.monotonic() - worker.since > _PATIENCE_S:
            return "ended", f"has found no room on the node {where[:8]}: others have taken its {worker.cpus} cpus"
        state: NodeState = "running" if worker.answered else "waiting"
        if not self._ray.wait([worker.asked], timeout=0)[0]:
            return state, ""
        asked, worker.asked = worker.asked, None
        try:
            over, story = self._ray.get(asked)
        except self._ray.exceptions.ActorDiedError as error:
            return "ended", f"has died: {died(error)}"
        except self._ray.exceptions.RayError:  # it is being restarted
            return state, ""
        worker.answered = True
        return ("ended", story) if over else ("running", "")

    def _remove(self, names: Sequence[str], *, in_order: bool) -> None:
        if not names:
            return
        groups = groups_of(self._settings.name)
        end_actors(self._settings.name, names, in_order=in_order)
        for name in names:
            self._workers.pop(name, None)
            if name in groups:
                remove_group(groups[name])
