"""A server here, and workers on hosts that ssh reaches."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from loom.deploy.keeper import check_wanted
from loom.deploy.nodes import Offer
from loom.deploy.offers import memory_option, offered, plugin_options
from loom.deploy.saying import counted
from loom.deploy.serving import KeptCluster
from loom.deploy.ssh_hosts import Host, address_towards, listening_host, parse_hosts, ssh_words
from loom.deploy.ssh_nodes import Launch, SSHWorkers
from loom.errors import DeployError, LoomError
from loom.net.interfaces import interface_address
from loom.wire.keys import load_key

_LOGIN_S: Final = 60.0  # start() waits so long for hosts to answer; those that do later are there later
_LOST_S: Final = 60.0  # a worker ends when it has not reached the server for so long


class SSHCluster(KeptCluster):
    """A server on this machine and `workers_per_host` workers on each of the `hosts`, which `ssh` logs in to.

    `hosts`: as ssh takes them, "user@host", "host:2222", names of ~/.ssh/config; logging in has to work without a
    password. `python` is what the shell there is to run as a Python that has the same Loom, with `~` and all (this
    one's path unless given); `prologue` are lines for that shell before it, `directory` is where workers run (the home
    unless given), `environment` what is added to theirs. `ssh_options` are for ssh, such as ["-i", "FILE"].

    Hosts reach the server at the `address` or `interface` of this machine that is given, else at the one from which it
    reaches them, at `port` (any free one); with `tunnel=True` through the ssh connections, where they can connect to
    nothing here.

    What workers offer: `cpus` (all of the host's, divided among its workers), `gpus`, `mem`, `resources`, `memory`,
    `load`, `load_native` as for a LocalCluster, and `worker_options`, further ones of `loom-worker`. The key of
    `key_file` goes through ssh to a directory that goes with the worker; where the hosts have the same file,
    `remote_key_file` names it. With `journal`, a file, the next cluster with the same file goes on from there.

    Nodes are workers; they end when their connection or this process does. `start` returns when each host runs its
    workers or has failed, and raises DeployError with what ssh said where all have failed.
    """

    title = "ssh cluster"

    def __init__(
        self,
        hosts: Iterable[str],
        workers_per_host: int = 1,
        cpus: int | None = None,
        *,
        gpus: int | None = None,
        mem: int | str | None = None,
        resources: Mapping[str, int] | None = None,
        memory: int | str | None = None,
        load: Sequence[str] | None = None,
        load_native: Sequence[str | os.PathLike[str]] | None = None,
        worker_options: Sequence[str] = (),
        python: str | None = None,
        prologue: str = "",
        directory: str = "",
        environment: Mapping[str, str] | None = None,
        ssh_options: Sequence[str] = (),
        address: str | None = None,
        interface: str | None = None,
        port: int = 0,
        tunnel: bool = False,
        key_file: str | os.PathLike[str] | None = None,
        remote_key_file: str | None = None,
        journal: str | os.PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        self._hosts = parse_hosts(hosts)
        if isinstance(workers_per_host, bool) or not isinstance(workers_per_host, int) or workers_per_host < 1:
            raise LoomError(f"workers_per_host={workers_per_host!r}: write a whole number, 1 or more")
        if tunnel and (address is not None or interface is not None):
            raise LoomError("with tunnel=True workers connect to their own host: leave out address and interface")
        if address is not None and interface is not None:
            raise LoomError("address and interface both say where this machine is: choose one")
        if not isinstance(prologue, str):
            raise LoomError(f"prologue={prologue!r:.200}: write the lines as one text")
        self._n_each = workers_per_host
        self._n_most = workers_per_host * len(self._hosts)
        super().__init__(check_wanted(self._n_most, self._n_most), key_file, progress)
        extras, options = offered(1 if cpus is None else cpus, gpus, mem, resources)
        self._offer = Offer(cpus or 1, extras)
        options = [*(options if cpus is not None else options[2:]), *memory_option(memory)]
        options += plugin_options(load or (), load_native or ())
        self._journal = [] if journal is None else ["--journal", os.path.abspath(journal)]
        self._ssh_options = _words("ssh_options", ssh_options)
        lost = ("--log-level", "warning", "--lost-timeout", f"{_LOST_S:g}")
        program = shlex.quote(sys.executable) if python is None else python
        self._launch = Launch(
            ssh=(),
            command="\n".join((*prologue.splitlines(), f"exec {program} -m loom.deploy.ssh_start")),
            arguments=(*lost, *options, *_words("worker_options", worker_options)),
            environment=_environment(environment or {}),
            directory=directory,
            key=f"{load_key(key_file).hex()}\n" if remote_key_file is None else "",
            key_file=remote_key_file or "",
            share=workers_per_host if cpus is None else 0,
            is_tunnel=tunnel,
        )
        self._told_address = address
        self._interface = interface
        self._port = port

    def adapt(self, minimum: int, maximum: int, idle_s: float = 30.0) -> None:
        if check_wanted(minimum, maximum, idle_s).maximum > self._n_most:
            raise LoomError(
                f"{maximum} workers: there are {counted(len(self._hosts), 'host')} with workers_per_host={self._n_each}"
            )
        super().adapt(minimum, maximum, idle_s)

    def _start(self) -> None:
        told = self._addresses()
        listens_at = "127.0.0.1" if self._launch.is_tunnel else self._listening_at(list(told.values()))
        port = self._start_server(listens_at, self._port, ["--log-level", "warning", *self._journal])
        launch = self._launch._replace(ssh=ssh_words(self._ssh_options, port if self._launch.is_tunnel else 0))
        places = {host: (told.get(host, ""), port) for host in self._hosts}
        workers = SSHWorkers(self._hosts, self._n_each, launch, places, self._offer, self._says, self._wake)
        self._keep(workers)
        workers.settle(_LOGIN_S)
        failures = workers.failures()
        if failures:
            raise DeployError("no host runs a worker:" + "".join(f"\n  a worker {story}" for story in failures))
        self._go_on_keeping()

    def _addresses(self) -> dict[Host, str]:
        """Where each host finds this machine; nothing where that is through a tunnel."""
        if self._launch.is_tunnel:
            return {}
        given = self._told_address
        if self._interface is not None:
            given = interface_address(self._interface)
        if given is not None:
            return dict.fromkeys(self._hosts, given)
        return {host: address_towards(host, self._ssh_options) for host in self._hosts}

    def _listening_at(self, told: list[str]) -> str:
        return interface_address(self._interface) if self._interface is not None else listening_host(told)


def _words(what: str, words: Sequence[str]) -> list[str]:
    if isinstance(words, str) or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise LoomError(f'{what}={words!r:.200}: write a list of words, such as ["-i", "FILE"]')
    return list(words)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(environment, Mapping):
        raise LoomError(f'environment={environment!r:.200}: write names and values, such as {{"OMP_NUM_THREADS": "1"}}')
    for name, value in environment.items():
        if not isinstance(name, str) or not name or "=" in name or not isinstance(value, str) or "\0" in name + value:
            raise LoomError(f"environment: {name!r:.100} is no name of a variable, or its value is no text")
    return dict(environment)
