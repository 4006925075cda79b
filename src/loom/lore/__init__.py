"""Reports: what a trace says, and what a plan would do, as one HTML file. Started as `python -m loom.lore`."""

from __future__ import annotations

import os
from collections.abc import Iterable

from loom.tasktypes.task import Task

__all__ = ["make_dry_report"]


def make_dry_report(tasks: Task | Iterable[Task], report_filename: str | os.PathLike[str]) -> None:
    """Write an HTML file that shows a plan as it would run; nothing is submitted, and no server is needed.

    `tasks`: what would be submitted, one task or several. Raises InvalidPlan where `submit` would and where there is
    no task, and LoomError where the file cannot be written.
    """
    from loom.lore.dry import dry_report  # only who wants a report pays for what draws it

    dry_report(tasks, report_filename)
