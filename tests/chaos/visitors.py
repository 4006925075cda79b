"""Clients that come for a while: some stay, some are killed, and of some another one takes the session up."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random
from typing import Final

from chaos.client import Spec
from chaos.cluster import Cluster, Trouble

STAYS: Final = "stays"
KILLED: Final = "killed"
CHANGES: Final = "changes"  # a named session: killed when all is acknowledged, and another one takes it up

KINDS: Final = (STAYS, STAYS, KILLED, CHANGES, CHANGES)

_PAUSE_S: Final = 0.05


class Visitor:
    """`client` is who is there now."""

    def __init__(self, cluster: Cluster, kind: str, spec: Spec, rng: Random) -> None:
        self._cluster = cluster
        self.kind = kind
        self.was_killed = False
        self._second = False
        self._begun = False
        if kind == CHANGES:
            shapes = [shape for shape in spec.shapes if shape != "dynamic"]
            spec = replace(spec, session=spec.name, n_rounds=1, shapes=shapes)
        self._spec = spec
        self._patience_s = rng.uniform(0, 8)  # from its beginning until it is killed
        self._since_s = time.monotonic()
        self.client = cluster.add_client(spec)

    def tend(self) -> None:
        """Do what is due."""
        client = self.client
        if not self._begun and client.said("ready"):
            self._begun = True
            client.go_on()
        if not self._begun or self.was_killed or self._second or time.monotonic() - self._since_s < self._patience_s:
            return
        if self.kind == KILLED or (self.kind == CHANGES and client.said("submitted")):
            self._kill()

    def _kill(self) -> None:
        client = self.client
        self._cluster.strike(f"kill -9 {client.name}")
        client.stopped = True
        client.popen.kill()
        client.popen.wait()
        if client.proxy is not None:
            client.proxy.close()
            client.proxy = None
        if self.kind == KILLED:
            self.was_killed = True
            return
        self._second, self._begun = True, False
        spec = replace(self._spec, name=f"{self._spec.name}-second", prefix=self._spec.name, taken_up=True)
        self.client = self._cluster.add_client(spec)

    def is_through(self) -> bool:
        """Whether it is gone, or has everything."""
        return self.was_killed or ((self.kind != CHANGES or self._second) and self.client.said("delivered"))

    def finish(self, within_s: float) -> None:
        """Wait until it is through."""
        deadline = time.monotonic() + within_s
        while not self.is_through():
            self.tend()
            alive = self.client.alive or self.was_killed
            if not alive or time.monotonic() > deadline:
                raise Trouble(
                    f"{self.client.name} is not through: {self.client.log.read_text(errors='replace')[-3000:]}"
                )
            time.sleep(_PAUSE_S)
