"""`loom-server` that appends each result that it accepts to the ledger.

`LOOM_CHAOS_COMPACT_BYTES` is the size above which it writes its journal anew, each time it has grown by half.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from chaos import ledger
from loom.cli.server import main
from loom.core.graph import Graph
from loom.core.node import Node
from loom.core.past import Past
from loom.core.server import ServerCore
from loom.ids import task_id
from loom.journal import compaction, writer


def _recording(accept: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(accept)
    def recorded(graph: Graph, node: Node, *rest: Any) -> Any:
        comes_back = node.worker is not None and node.worker.attaching
        event = ledger.ADOPTED if comes_back else ledger.ACCEPTED
        ledger.append(event, ledger.name_in(node.config()), node.id, node.attempt)
        return accept(graph, node, *rest)

    return recorded


def _telling(begin: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(begin)
    def told(core: ServerCore, incarnation: int, *rest: Any) -> None:
        lines = [(ledger.SERVER, ledger.NO_NAME, 0, incarnation)]
        for past in rest:
            if isinstance(past, Past):
                for session in past.sessions.values():
                    for number, (attempt, _) in session.finished.items():
                        lines.append((ledger.KNOWN, ledger.NO_NAME, task_id(session.id, number), attempt))
        ledger.append_all(lines)
        begin(core, incarnation, *rest)

    return told


Graph.finish = _recording(Graph.finish)  # type: ignore[method-assign]
Graph.redirect = _recording(Graph.redirect)  # type: ignore[method-assign]
ServerCore.__init__ = _telling(ServerCore.__init__)  # type: ignore[method-assign]
if ledger.COMPACT in os.environ:
    vars(compaction)["JOURNAL_COMPACT_GROWTH"] = 1.5
    vars(writer)["Compaction"] = functools.partial(compaction.Compaction, min_bytes=int(os.environ[ledger.COMPACT]))

if __name__ == "__main__":
    main()
