"""`loom-worker` whose functions are told the whole numbers of task and attempt, those of session and server included.

By them the ledger tells runs of before and after a server's restart apart.
"""

from __future__ import annotations

from loom.cli.worker import main
from loom.worker import executors


def _whole(number: int) -> int:
    return number


vars(executors).update(number_of=_whole, run_number=_whole)

if __name__ == "__main__":
    main()
