"""A network of its own for each process of a run: namespaces, joined by a bridge, and packet filters in them.

Everything is inside of namespaces with the run's prefix: nothing of the machine's own network changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

_SUBNET: Final = "10.77.0"
_TABLE: Final = "inet chaos"


def missing() -> str:
    """Why there can be no network of this kind here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"needs the program {tool}"
    return ""


def _call(*command: str, give: str = "") -> None:
    done = subprocess.run(command, input=give, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


class Network:
    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.addresses: dict[str, str] = {}
        self._hub = f"{prefix}-hub"
        _call("ip", "netns", "add", self._hub)
        self._in(self._hub, "ip", "link", "add", "bridge", "type", "bridge")
        self._in(self._hub, "ip", "link", "set", "bridge", "up")

    def _space(self, node: str) -> str:
        return f"{self._prefix}-{node}"

    def _in(self, space: str, *command: str, give: str = "") -> None:
        _call("ip", "netns", "exec", space, *command, give=give)

    def enter(self, node: str) -> list[str]:
        """What stands in front of a command that is to run there."""
        return ["ip", "netns", "exec", self._space(node)]

    def add(self, node: str) -> str:
        """A node with an address of its own, which is returned."""
        space, number = self._space(node), len(self.addresses) + 1
        address = f"{_SUBNET}.{number}"
        _call("ip", "netns", "add", space)
        self.addresses[node] = address
        self._in(
            self._hub, "ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", space
        )
        self._in(self._hub, "ip", "link", "set", f"port{number}", "master", "bridge", "up")
        self._in(space, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        self._in(space, "ip", "link", "set", "eth0", "up")
        self._in(space, "ip", "link", "set", "lo", "up")
        return address

    def cut(self, node: str, others: Sequence[str], incoming: bool = True, outgoing: bool = True) -> None:
        """Packets between `node` and the others vanish, in these directions as `node` sees them."""
        peers = ", ".join(self.addresses[other] for other in others)
        rules = [f"add table {_TABLE}"]
        if incoming:
            rules.append(f"add chain {_TABLE} input {{ type filter hook input priority 0; }}")
            rules.append(f"add rule {_TABLE} input ip saddr {{ {peers} }} drop")
        if outgoing:
            rules.append(f"add chain {_TABLE} output {{ type filter hook output priority 0; }}")
            rules.append(f"add rule {_TABLE} output ip daddr {{ {peers} }} drop")
        self._in(self._space(node), "nft", "-f", "-", give="\n".join(rules) + "\n")

    def heal(self, node: str) -> None:
        self._in(self._space(node), "nft", "-f", "-", give=f"add table {_TABLE}\ndelete table {_TABLE}\n")

    def remove(self) -> None:
        for space in [*map(self._space, self.addresses), self._hub]:
            subprocess.run(("ip", "netns", "delete", space), capture_output=True)
