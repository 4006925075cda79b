"""What a cluster consists of besides its server, and who starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, Protocol

NO_EXTRAS: Final[Mapping[str, int]] = MappingProxyType({})

NodeState = Literal["waiting", "running", "ended"]
"""waiting: the engine has it and it does not run yet."""


class Node(NamedTuple):
    """What is started and ends as a whole: a process, an actor, a batch job of several workers.

    `workers` are the names by which they register at the server. `story` says how it ended; empty where that was in
    good order: it was let go, or its time was over. Before a worker is there it may say what keeps it.
    """

    id: str
    state: NodeState
    workers: tuple[str, ...]
    story: str = ""


class Offer(NamedTuple):
    """What one node brings: `n_workers` workers, each with so many cores and extras (as in `Request.extras`), which are
    there for `time_limit_ms`; 0: for as long as they are needed.
    """

    cpus: int
    extras: Mapping[str, int] = NO_EXTRAS
    n_workers: int = 1
    time_limit_ms: int = 0


class Provider(Protocol):
    """Starts and ends nodes somewhere. Its methods are called from one thread at a time, and may take their time."""

    what: str
    """What a node is there, for people: "process", "job", "actor"."""

    @property
    def offer(self) -> Offer: ...

    def launch(self, count: int) -> None:
        """Begin to start so many. DeployError with what the engine said; some may have been started."""

    def nodes(self) -> list[Node]:
        """All there are, as the engine sees them; an ended one is among them once. DeployError where it cannot say."""

    def end(self, nodes: Sequence[Node]) -> None:
        """End them at once. Retiring them in good order goes through the server."""

    def close(self) -> None:
        """End everything; nothing is left behind."""
