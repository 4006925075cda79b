"""The states of a task in the server, and the one table of allowed moves between them.

WAITING    some input is not there yet
READY      every input is there; waits for a worker
ASSIGNED   sent to a worker, perhaps ahead of inputs that the same worker makes
FINISHED   accepted; at least one worker holds its object
DROPPED    its object is nowhere and nobody needs it now; the spec is kept for descendants
FAILED     it or something it needs failed
FORGOTTEN  out of the graph
"""

from typing import Final

WAITING: Final = 0
READY: Final = 1
ASSIGNED: Final = 2
FINISHED: Final = 3
DROPPED: Final = 4
FAILED: Final = 5
FORGOTTEN: Final = 6

NAMES: Final = ("WAITING", "READY", "ASSIGNED", "FINISHED", "DROPPED", "FAILED", "FORGOTTEN")

UNFINISHED: Final = (WAITING, READY, ASSIGNED)

ALLOWED: Final[tuple[frozenset[int], ...]] = (
    frozenset({READY, ASSIGNED, DROPPED, FAILED}),  # WAITING: inputs came, sent ahead, cancelled, an input failed
    frozenset({WAITING, ASSIGNED, DROPPED, FAILED}),  # READY: an input was lost, sent, cancelled
    frozenset({WAITING, READY, FINISHED, DROPPED, FAILED}),  # ASSIGNED: given back or worker lost, done, cancelled
    frozenset({DROPPED, FAILED}),  # FINISHED: not needed any more or its last replica lost; its checkpoint failed
    frozenset({WAITING, FORGOTTEN}),  # DROPPED: needed again, or nobody descends from it any more
    frozenset({FORGOTTEN}),  # FAILED: released
    frozenset(),
)
