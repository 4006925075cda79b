"""Where a process serves its objects, and what others are told of that: hosts and ports as its user has them."""

from __future__ import annotations

from typing import NamedTuple

from loom.net.interfaces import interface_address, is_here


class Serving(NamedTuple):
    """All but nothing of it is left to choose: an empty text or 0 where the user has not said anything.

    `interface`: listen at its address. `host`, `told_port`: what others are told, in place of where it listens (an
    address or a name that leads here, through NAT or a tunnel perhaps). `port`: listen there. `host_id`: processes
    whose hosts have other ids do not take each other for ones of the same host.
    """

    interface: str = ""
    host: str = ""
    told_port: int = 0
    port: int = 0
    host_id: str = ""

    def listens_at(self, link_host: str) -> str:
        """The address to listen at; `link_host` is that of this end of the link to the server: others reach this
        machine there, as a rule.

        Raises LoomError where the interface has no address.
        """
        if self.interface:
            return interface_address(self.interface)
        if not self.host or self.host == link_host:
            return link_host
        if is_here(self.host):
            return self.host
        return "::" if ":" in self.host or ":" in link_host else "0.0.0.0"

    def told(self, listens_at: str, port: int) -> tuple[str, int]:
        """The host and port for others, who can do nothing with the name of an interface of this machine."""
        return self.host or listens_at.partition("%")[0], self.told_port or port
