"""What somebody wants on Kubernetes, checked: a manifest that the API server refuses is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from loom.errors import LoomError
from loom.limits import MAX_CPUS, MIB
from loom.resources import parse_size

# RFC 1035 labels, which services need (RFC 1123 ones may begin with a digit).
_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# What we put behind it ("-server-0"), and what Kubernetes does ("-worker-" and two hashes), has to fit into 63, too.
_MAX_NAME_CHARS: Final = 38
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")  # RFC 1123
_MAX_LABEL_CHARS: Final = 63
_SUBDOMAIN: Final = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_MAX_SUBDOMAIN_CHARS: Final = 253
_IMAGE: Final = re.compile(r"[a-z0-9][\w.:/@-]*", re.ASCII)
_MAX_IMAGE_CHARS: Final = 512
_LEAST_WORKER_BYTES: Final = 256 * MIB  # a Python process for each core, and some room for objects
_LEAST_SERVER_BYTES: Final = 256 * MIB
_MAX_WORKERS: Final = 10_000
_MAX_SECONDS: Final = 86_400

SERVICES: Final = ("ClusterIP", "NodePort", "LoadBalancer")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`workers` of `cpus` cores and `memory` (a size, such as 4GiB) each; `store` of it is for objects (half of it
    where empty). `max_workers` above `workers` makes them scale. `namespace` may be empty: that of whoever applies
    them. `journal` is the size of the server's volume, empty for none. `drain_s`: seconds.

    Raises LoomError where something is no name, size or number that Kubernetes and Loom take.
    """

    image: str
    name: str = "loom"
    namespace: str = ""
    workers: int = 2
    max_workers: int = 0
    cpus: int = 2
    memory: str = "4GiB"
    store: str = ""
    gpus: int = 0
    server_memory: str = "2GiB"
    journal: str = "10GiB"
    storage_class: str = ""
    service: str = "ClusterIP"
    secret: str = ""
    pull_secret: str = ""
    drain_s: int = 60
    cpu_target: int = 70
    network_policy: bool = True

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > _MAX_NAME_CHARS:
            raise LoomError(
                f"the name {self.name!r:.100}: write lower-case letters, digits and dashes, a letter first, no dash "
                f"last, at most {_MAX_NAME_CHARS} of them"
            )
        _check_label("namespace", self.namespace)
        for what, name in (
            ("storage class", self.storage_class),
            ("secret", self.secret),
            ("pull secret", self.pull_secret),
        ):
            _check_subdomain(what, name)
        if not _IMAGE.fullmatch(self.image) or len(self.image) > _MAX_IMAGE_CHARS:
            raise LoomError(f"{self.image!r:.200} is no name of an image: write such as registry.example/loom:0.1.0")
        if self.service not in SERVICES:
            raise LoomError(f"service {self.service!r}: choose one of {', '.join(SERVICES)}")
        _check_number("workers", self.workers, 1, _MAX_WORKERS)
        _check_number("max_workers", self.max_workers, 0, _MAX_WORKERS)
        if 0 < self.max_workers < self.workers:
            raise LoomError(f"at most {self.max_workers} workers, and at least {self.workers}: turn that around")
        _check_number("cpus", self.cpus, 1, MAX_CPUS)
        _check_number("gpus", self.gpus, 0, MAX_CPUS)
        _check_number("seconds to drain", self.drain_s, 0, _MAX_SECONDS)
        _check_number("percent of the cores", self.cpu_target, 1, 100)
        _at_least("a worker's memory", parse_size(self.memory), _LEAST_WORKER_BYTES)
        _at_least("the server's memory", parse_size(self.server_memory), _LEAST_SERVER_BYTES)
        if self.journal:
            _at_least("the journal's volume", parse_size(self.journal), 64 * MIB)
        if self.store and not MIB <= parse_size(self.store) < parse_size(self.memory):
            raise LoomError(f"{self.store} for objects of the worker's {self.memory}: tasks need some of it, too")

    @property
    def memory_mib(self) -> int:
        return parse_size(self.memory) // MIB

    @property
    def store_mib(self) -> int:
        return parse_size(self.store) // MIB if self.store else self.memory_mib // 2

    @property
    def server_memory_mib(self) -> int:
        return parse_size(self.server_memory) // MIB

    @property
    def journal_mib(self) -> int:
        return parse_size(self.journal) // MIB if self.journal else 0

    @property
    def secret_name(self) -> str:
        return self.secret or f"{self.name}-key"


def _check_label(what: str, name: str) -> None:
    if name and (not _LABEL.fullmatch(name) or len(name) > _MAX_LABEL_CHARS):
        raise LoomError(
            f"the {what} {name!r:.100}: write lower-case letters, digits and dashes, no dash first or last, at most "
            f"{_MAX_LABEL_CHARS} of them"
        )


def _check_subdomain(what: str, name: str) -> None:
    if name and (not _SUBDOMAIN.fullmatch(name) or len(name) > _MAX_SUBDOMAIN_CHARS):
        raise LoomError(
            f"the {what} {name!r:.100}: write lower-case letters, digits, dashes and dots, a letter or digit first and "
            f"last, at most {_MAX_SUBDOMAIN_CHARS} of them"
        )


def _check_number(what: str, number: int, least: int, most: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise LoomError(f"{what}: {number!r:.50} is no whole number from {least} to {most}")


def _at_least(what: str, size: int, least: int) -> None:
    if size < least:
        has = f"{size // MIB} MiB" if size >= MIB else f"{size} bytes"
        raise LoomError(f"{what} is {has}: give it at least {least // MIB} MiB")
