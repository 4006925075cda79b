"""What ssh and the other side have said, as a sentence that says what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from loom.deploy.ssh_hosts import Host

SSH_FAILED: Final = 255  # ssh's own status for everything that is not the command's
NOT_FOUND: Final = (126, 127)  # of a shell
_KILLED: Final = 137  # what a shell says of SIGKILL
_LINES: Final = 3
_MAX_CHARS: Final = 600

_LOGGING_IN: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), advice)
    for pattern, advice in (
        (r"could not resolve hostname", "no host has that name: look at how it is written, and at ~/.ssh/config"),
        (
            r"host key verification failed|identification has changed|no .*host key is known",
            "this machine does not know that host, or knows another key of it: log in once by hand (`ssh {host}`) and "
            "compare the key; an old one is removed with `ssh-keygen -R`",
        ),
        (
            r"permission denied|too many authentication failures",
            "it does not take our key, and there is nobody to ask for a password: `ssh-copy-id {host}`, or `ssh-add` "
            "where the key has a passphrase; `ssh -o BatchMode=yes {host} true` has to work",
        ),
        (r"connection refused", "no ssh server listens there: look at the port, and whether sshd runs"),
        (
            r"timed out|no route to host|network is unreachable",
            "it does not answer: it is down, or a firewall is in between",
        ),
        (
            r"kex_exchange_identification|connection (closed|reset) by",
            "its sshd does not take so many connections at a time (MaxStartups), or none from here",
        ),
        (
            r"remote port forwarding failed|administratively prohibited",
            "its sshd does not allow tunnels (AllowTcpForwarding): use it without tunnel=True",
        ),
        (r"bad configuration option|bad owner or permissions", "mend that in ~/.ssh/config or ssh_options"),
        (
            r"no module named '?\"?loom",
            "that Python has no Loom, or an older one: install the same version there, or name another Python with "
            "python=...",
        ),
        (
            r"python[\w./]*: .*(not found|no such file)|not found.*python|no such file.*python",
            "name a Python of that host that has Loom, with python=...",
        ),
    )
)
_RUNNING: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), advice)
    for pattern, advice in (
        (r"not responding|broken pipe", "the host, or the network to it, is gone"),
        (
            r"no server for [\d.]+ s",
            "the host cannot reach the server here: give an address that it can (address=..., interface=...), open the "
            "port in the firewall (port=...), or use tunnel=True",
        ),
        (r"^error: ", ""),  # a worker's own last word
    )
)
_NOISE: Final = re.compile(r"Warning: Permanently added|Allocated port \d+|^\s*$|^@+$")


def ending(host: Host, status: int, said: Sequence[str], *, was_running: bool) -> str:
    """How a worker ended, after its name: a clause that begins with a verb. `status` is that of ssh, not 0."""
    lines = [line.strip() for line in said if not _NOISE.search(line)]
    text, advice = _choose(lines, _RUNNING if was_running else _LOGGING_IN)
    if not text:
        text = f"ssh said nothing (status {status})" if status == SSH_FAILED else f"status {status}"
        advice = "what it had started there was killed" if status == SSH_FAILED and was_running else ""
        if status == _KILLED:
            advice = "killed by hand, or because the host's memory was full"
    if not advice and status in NOT_FOUND and not was_running:
        advice = "name a Python of that host that has Loom, with python=..."
    verb = "has ended" if was_running else "could not be started"
    port = f"-p {host.port} " if host.port else ""  # ssh and ssh-copy-id do not take it as host:port
    advice = advice.format(host=f"{port}{host.destination}")
    return f"{verb} on {host.text}: {text[:_MAX_CHARS]}" + (f" ({advice})" if advice else "")


def _choose(lines: Sequence[str], known: Sequence[tuple[re.Pattern[str], str]]) -> tuple[str, str]:
    """The line that tells what to do, and that; else the last ones."""
    for line in reversed(lines):
        for pattern, advice in known:
            if pattern.search(line):
                return line, advice
    return " / ".join(lines[-_LINES:]), ""
