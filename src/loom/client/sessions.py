"""Sessions as their users see them: who uses which, and what is in it."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from loom.limits import MAX_NAME_CHARS
from loom.messages import SessionInfo


class NamedSession(NamedTuple):
    """A session that outlives its clients. `used_by` is empty where no client uses it now."""

    name: str
    used_by: str
    n_tasks: int
    n_unfinished: int
    results: list[str]
    """Names of results, in order."""


def listed_sessions(infos: list[SessionInfo]) -> list[NamedSession]:
    """In the order of their names."""
    sessions = [NamedSession(i.name, i.who, i.n_tasks, i.n_unfinished, sorted(i.names)) for i in infos]
    return sorted(sessions, key=lambda session: session.name)


def describe_process() -> str:
    """Which process this is, for people: host:pid (script)."""
    path = sys.argv[0] if sys.argv else ""
    script = os.path.basename(os.path.dirname(path) if path.endswith("/__main__.py") else path)
    where = f"{os.uname().nodename}:{os.getpid()}"
    text = where if not script or script.startswith("-") else f"{where} ({script})"
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text.encode(errors="replace").decode()[:MAX_NAME_CHARS]
