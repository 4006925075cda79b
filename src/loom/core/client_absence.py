"""When a client's link to its server is away: how often it is tried again, for how long, and what its user hears."""

from __future__ import annotations

from typing import Final

from loom.core.client_events import ClientEffect, Connect, LinkAway, LinkBack
from loom.limits import RECONNECT_PAUSE_MAX_S, RECONNECT_PAUSE_S

_TELL_S: Final = 1.0  # an absence that is longer is worth a word


class Absence:
    """`patience_s` is how long the link may be away, as the server says when a session is opened."""

    def __init__(self) -> None:
        self.patience_s = 0
        self._away = False
        self._since = 0.0
        self._why = ""
        self._told = False
        self._pause_s = RECONNECT_PAUSE_S

    def on_lost(self, reason: str, now: float) -> Connect | None:
        """The link broke, or could not be made; None where it has been away for too long."""
        if not self._away:
            self._away = True
            self._since = now
            self._why = reason
        if now - self._since > self.patience_s:
            return None
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, RECONNECT_PAUSE_MAX_S)
        return Connect(pause_s)

    def on_open(self, patience_s: int, now: float, effects: list[ClientEffect]) -> None:
        """The session is open, for the first time or again."""
        if self._told:
            effects.append(LinkBack(now - self._since))
        self.patience_s = patience_s
        self._away = self._told = False
        self._pause_s = RECONNECT_PAUSE_S

    def tell(self, now: float, effects: list[ClientEffect]) -> None:
        """Once for each absence."""
        if self._away and not self._told and now - self._since >= _TELL_S:
            self._told = True
            effects.append(LinkAway(self._why, self.patience_s))
