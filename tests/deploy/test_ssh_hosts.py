"""Hosts as people write them, and what is made of what ssh says."""

import socket

import pytest
from needs import needs

from loom.deploy import SSHCluster
from loom.deploy.ssh_hosts import address_towards, listening_host, parse_host, ssh_words
from loom.deploy.ssh_words import ending
from loom.errors import DeployError, LoomError
from loom.net.interfaces import usual_address


@pytest.mark.parametrize(
    ("text", "destination", "port", "label"),
    [
        ("node1", "node1", 0, "node1"),
        ("ada@node1", "ada@node1", 0, "node1"),
        ("ada@node1.example:2222", "ada@node1.example", 2222, "node1.example"),
        ("node1:22", "node1", 22, "node1"),
        ("2001:db8::1", "2001:db8::1", 0, "2001:db8::1"),
        ("[2001:db8::1]:2222", "2001:db8::1", 2222, "2001:db8::1"),
        ("ada@[fe80::1%eth0]:22", "ada@fe80::1%eth0", 22, "fe80::1%eth0"),
        ("a_name/of~config", "a_name/of~config", 0, "a_name_of_config"),
    ],
)
def test_hosts_as_people_write_them(text: str, destination: str, port: int, label: str) -> None:
    host = parse_host(text)
    assert (host.destination, host.port, host.label) == (destination, port, label)
    assert host.words()[-2:] == ["--", destination]


@pytest.mark.parametrize(
    "text", ["", "-oProxyCommand=touch x", "a b", "a\nb", "node1:", "node1:0", "node1:70000", "node1:x", "[::1", 3]
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(LoomError):
        parse_host(text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"hosts": "node1"}, "write a list"),
        ({"hosts": []}, "name from 1"),
        ({"hosts": ["a", "b", "a"]}, "'a' is there twice"),
        ({"workers_per_host": 0}, "workers_per_host=0"),
        ({"cpus": 0}, "cpu"),
        ({"ssh_options": "-v"}, "ssh_options='-v'"),
        ({"worker_options": "--nopin"}, "worker_options"),
        ({"environment": {"A=B": "c"}}, "'A=B'"),
        ({"environment": {"A": 1}}, "'A'"),
        ({"tunnel": True, "address": "10.0.0.1"}, "leave out address"),
        ({"interface": "lo", "address": "10.0.0.1"}, "choose one"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(LoomError, match=says):
        SSHCluster(**{"hosts": ["node1"], **arguments})  # type: ignore[arg-type]


def test_ssh_is_called_as_the_user_wants() -> None:
    words = ssh_words(["-i", "FILE"])
    assert words[:3] == ["ssh", "-i", "FILE"]
    assert "BatchMode=yes" in words
    assert "ClearAllForwardings=yes" in words
    assert ssh_words([], 9010)[-2:] == ["-R", "127.0.0.1:0:127.0.0.1:9010"]


def test_the_address_that_a_host_sees() -> None:
    needs("ssh", package="openssh-client")
    assert address_towards(parse_host("127.0.0.2"), ["-F", "none"]) == "127.0.0.1"
    behind_another = ["-F", "none", "-o", "ProxyJump=gate.invalid"]
    assert address_towards(parse_host("127.0.0.2"), behind_another) == usual_address()
    assert address_towards(parse_host("no-such-host.invalid"), ["-F", "none"]) == usual_address()
    with pytest.raises(DeployError, match="ssh refuses node1"):
        address_towards(parse_host("node1"), ["-F", "none", "-o", "NoSuchOption=1"])


def test_where_the_server_listens() -> None:
    assert listening_host(["127.0.0.1", "localhost"]) == "127.0.0.1"
    assert listening_host(["::1"]) == "::1"
    assert listening_host(["127.0.0.1", "10.0.0.1"]) == "0.0.0.0"
    assert listening_host(["2001:db8::1"]) == "::"
    with pytest.raises(DeployError, match="choose with address="):
        listening_host(["2001:db8::1", "10.0.0.1"])


LOGIN: list[tuple[int, list[str], str]] = [
    (255, ["ssh: Could not resolve hostname n: Name or service not known"], "no host has that name"),
    (255, ["@@@@@", "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "@@@@@"], "ssh-keygen -R"),
    (255, ["ada@n: Permission denied (publickey,password)."], "ssh-copy-id n"),
    (255, ["ssh: connect to host n port 22: Connection refused"], "no ssh server"),
    (255, ["ssh: connect to host n port 22: Connection timed out"], "firewall"),
    (255, ["kex_exchange_identification: read: Connection reset by peer"], "MaxStartups"),
    (255, ["Error: remote port forwarding failed for listen port 0"], "AllowTcpForwarding"),
    (255, [], "ssh said nothing (status 255)"),
    (127, ["bash: line 1: /x/python3: No such file or directory"], "python=..."),
    (127, ["csh: no such thing"], "python=..."),
    (1, ["/usr/bin/python3: Error while finding module specification: No module named 'loom'"], "install the same"),
    (75, ["Warning: Permanently added 'n'", "loom-ssh: this host has Loom 1"], "n: loom-ssh: this host has Loom 1"),
    (3, ["one", "two", "three", "four"], "two / three / four"),
]


@pytest.mark.parametrize(("status", "said", "expected"), LOGIN)
def test_what_ssh_says_and_what_to_do(status: int, said: list[str], expected: str) -> None:
    text = ending(parse_host("n"), status, said, was_running=False)
    assert text.startswith("could not be started on n: ")
    assert expected in text
    if said:
        assert any(line in text for line in said)


def test_advice_has_the_port_as_ssh_takes_it() -> None:
    text = ending(parse_host("ada@n:2222"), 255, ["Permission denied (publickey)."], was_running=False)
    assert text.startswith("could not be started on ada@n:2222: ")
    assert "`ssh-copy-id -p 2222 ada@n`" in text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["Timeout, server n not responding."], "the network to it"),
        (["Error: no server for 60 s: cannot connect to n:1: Connection refused"], "tunnel=True"),
        (["Usage: x", "Error: No such option '-x'."], "n: Error: No such option '-x'."),
        ([], "status 137"),
    ],
)
def test_how_a_worker_has_ended(said: list[str], expected: str) -> None:
    text = ending(parse_host("n"), 137, said, was_running=True)
    assert text.startswith("has ended on n: ")
    assert expected in text


def test_a_port_that_is_taken() -> None:
    needs("ssh", package="openssh-client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = SSHCluster(["127.0.0.2"], port=port, ssh_options=["-F", "none"])
        with pytest.raises(DeployError, match=f"cannot listen on 127.0.0.1:{port}"):
            cluster.start()
