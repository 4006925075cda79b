"""`loom-server` that appends each result that it accepts to the ledger."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from chaos import ledger
from loom.cli.server import main
from loom.core.graph import Graph
from loom.core.node import Node


def _recording(accept: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(accept)
    def recorded(graph: Graph, node: Node, *rest: Any) -> Any:
        attempt = node.attempt - node.session.before_first_attempt  # as the task itself sees it
        ledger.append(ledger.ACCEPTED, ledger.name_in(node.config()), node.id, attempt)
        return accept(graph, node, *rest)

    return recorded


Graph.finish = _recording(Graph.finish)  # type: ignore[method-assign]
Graph.redirect = _recording(Graph.redirect)  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
