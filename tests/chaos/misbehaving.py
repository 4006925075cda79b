"""Tasks that do harm, with what must become of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from chaos import bodies
from chaos.plans import PROGRAM, Made, Maker
from loom import tasks
from loom.resources import Request

_DEATHS: Final = {
    "segfault": r"SIGSEGV",
    "exit": r"status 7",
    "abort": r"SIGABRT",
    "kill": r"SIGKILL",
    "stack": r"SIGSEGV",
}
_MEM_BYTES: Final = 150 << 20


def make(maker: Maker, kinds: dict[str, int]) -> list[Made]:
    return [KINDS[kind](maker) for kind, count in kinds.items() for _ in range(count)]


def deadly(maker: Maker) -> Made:
    """Dies each time, and what depends on it fails with it."""
    how = maker.rng.choice(list(_DEATHS))
    name = maker.name()
    task = bodies.deadly_task(name, 5.0, how, "", maker.const().source)
    made = Made(task, b"", _DEATHS[how], name)
    if maker.rng.random() < 0.3:
        return Made(bodies.mix_task(maker.name(), 1.0, task), b"", _DEATHS[how], name)
    return made


def deadly_once(maker: Maker) -> Made:
    """Dies the first time and may be tried again."""
    how = maker.rng.choice(list(_DEATHS))
    name, given = maker.name(), maker.const()
    task = bodies.deadly_task(name, 5.0, how, str(maker.directory), given.source)
    task.retries = 2
    return Made(task, bodies.mix([given.value]), name=name)  # type: ignore[list-item]


def poison(maker: Maker) -> Made:
    """Kills its worker each time."""
    name = maker.name()
    return Made(bodies.poison_task(name, 5.0), b"", r"(?i)worker", name)


def glutton(maker: Maker) -> Made:
    """Takes more memory than it asked for."""
    name = maker.name()
    task = bodies.glutton_task(name, 5.0, 3 * _MEM_BYTES, Request(1, (("mem", _MEM_BYTES),)))
    return Made(task, b"", r"(?i)memory|MiB", name)


def daemon(maker: Maker) -> Made:
    """A program that forks, starts a session of its own, ignores SIGTERM, and ends well."""
    return _escaping(maker, "echo over", b"over\n")


def daemon_failing(maker: Maker) -> Made:
    return _escaping(maker, "echo wrong >&2; exit 3", b"", r"status 3\nStderr:\nwrong")


def _escaping(maker: Maker, end: str, value: bytes, fails: str = "") -> Made:
    name = maker.name()
    stays = "trap '' TERM HUP INT; while :; do sleep 60; done"
    command = f'setsid /bin/sh -c "{stays}" & setsid -f /bin/sh -c "{stays}"; (({stays}) &); sleep 0.05; {end}'
    task = tasks.run(("/bin/sh", PROGRAM, name, "/bin/sh", "-c", command))
    return Made(task, value, fails, name)


def endless(maker: Maker) -> Made:
    """Ignores SIGTERM, and has a time limit."""
    name = maker.name()
    command = "trap '' TERM; setsid /bin/sh -c 'while :; do sleep 60; done' & while :; do sleep 60; done"
    task = tasks.run(("/bin/sh", PROGRAM, name, "/bin/sh", "-c", command))
    task.time_limit_s = 1.0
    return Made(task, b"", r"time limit of 1(\.0)? s exceeded", name)


KINDS: Final[dict[str, Callable[[Maker], Made]]] = {
    kind.__name__: kind for kind in (deadly, deadly_once, poison, glutton, daemon, daemon_failing, endless)
}
