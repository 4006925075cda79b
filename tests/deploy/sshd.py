"""Real ssh servers on addresses of loopback, each like a host of its own. Nobody's own keys and settings are used."""

import getpass
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from clusters import LEAVE_S, eventually
from loom.client import tasks
from loom.deploy import SSHCluster

HERE = ("sh", "-c", 'set -- $SSH_CONNECTION; echo "$3"')  # the address at which ssh came in
MEET = ("sh", "-c", 'touch "$1/$2"; until [ -e "$1/a" ] && [ -e "$1/b" ]; do sleep 0.02; done', "meet")

PRIVILEGES = Path("/run/sshd")  # sshd wants this directory, empty, where root starts it


def make_key(path: Path) -> str:
    """The public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path], check=True)
    return path.with_suffix(".pub").read_text().strip()


class Sshd:
    """One that lets in whoever has the key `client_key` in `directory`, which the first of them makes."""

    def __init__(self, directory: Path, address: str, *options: str) -> None:
        self.address = address
        self.directory = directory / address
        self.directory.mkdir()
        self.client_key = directory / "client_key"
        authorized = directory / "authorized_keys"
        if not self.client_key.exists():
            authorized.write_text(make_key(self.client_key) + "\n")
            authorized.chmod(0o600)
        self.host_key = make_key(self.directory / "host_key")
        with socket.create_server((address, 0)) as free:
            self.port: int = free.getsockname()[1]
        config = self.directory / "sshd_config"
        lines = [
            f"ListenAddress {address}:{self.port}",
            f"HostKey {self.directory / 'host_key'}",
            f"AuthorizedKeysFile {authorized}",
            "AuthenticationMethods publickey",
            "StrictModes no",  # the directories of tests are not all ours alone
            "UsePAM no",
            "PermitRootLogin yes",
            "PrintMotd no",
            "PidFile none",
            "LogLevel VERBOSE",
            *options,
        ]
        config.write_text("".join(f"{line}\n" for line in lines))
        if os.geteuid() == 0:
            PRIVILEGES.mkdir(mode=0o755, exist_ok=True)
        self._log = self.directory / "log"
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                ["/usr/sbin/sshd", "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stderr=stream
            )
        eventually(self._listens, what=f"sshd on {address}")

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log()
        return "Server listening on" in self.log()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def host(self) -> str:
        return f"{getpass.getuser()}@{self.address}:{self.port}"

    def known(self) -> str:
        """A line for known_hosts."""
        return f"[{self.address}]:{self.port} {self.host_key}\n"

    def connections(self) -> list[psutil.Process]:
        """Its processes, one for each connection (and, of users other than root, one more)."""
        return psutil.Process(self._process.pid).children()

    def below(self) -> list[psutil.Process]:
        """Everything that runs in connections."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def running(self, module: str) -> list[psutil.Process]:
        """Those of them that run this Python module."""
        found = []
        for process in self.below():
            with suppress(psutil.NoSuchProcess):
                if module in process.cmdline():
                    found.append(process)
        return found

    def stop(self) -> None:
        left = self.below() if self._process.poll() is None else []
        self._process.terminate()
        self._process.wait(LEAVE_S)
        for process in left:
            if process.is_running():
                process.kill()


def client_options(directory: Path, servers: list[Sshd]) -> list[str]:
    """For ssh: the key that they take, and their host keys."""
    known_hosts = directory / "known_hosts"
    known_hosts.write_text("".join(server.known() for server in servers))
    settings = (
        f"IdentityFile={servers[0].client_key}",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        f"UserKnownHostsFile={known_hosts}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
    )
    return ["-F", "none", *(word for setting in settings for word in ("-o", setting))]


class Hosts:
    """Two hosts, and what a cluster on them is called with. Workers have their temporary files in `temporary`."""

    def __init__(self, directory: Path) -> None:
        self.servers = [Sshd(directory, "127.0.0.2"), Sshd(directory, "127.0.0.3")]
        self.options = client_options(directory, self.servers)
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        self.prologue = f"export TMPDIR={self.temporary}"

    def cluster(self, **options: Any) -> SSHCluster:
        options = {
            "hosts": [server.host for server in self.servers],
            "cpus": 1,
            "ssh_options": self.options,
            "prologue": self.prologue,
            **options,
        }
        return SSHCluster(**options)

    def assert_nothing_left(self) -> None:
        for server in self.servers:
            eventually(lambda server=server: not server.below(), what=f"the end of what runs on {server.address}")
        eventually(lambda: not list(self.temporary.iterdir()), what=f"the removal of {self.temporary}/*")

    def stop(self) -> None:
        self.assert_nothing_left()
        for server in self.servers:
            server.stop()


def meeting(place: Path) -> list[Any]:
    """Tasks that end when both run at the same time, and say where they did."""
    place.mkdir()
    both = [tasks.run((*MEET, str(place), name)) for name in "ab"]
    return [tasks.run(HERE, inputs=[(one, None)]) for one in both]


def told(cluster: SSHCluster) -> str:
    return "\n".join(cluster.status().problems)
