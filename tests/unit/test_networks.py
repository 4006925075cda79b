"""Addresses of this machine, and what users say of them."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from loom.cli import options, server, worker
from loom.errors import LoomError
from loom.net import interfaces
from loom.net.interfaces import interface_address, is_here, usual_address
from loom.net.objects.handover import handover_name, handover_text
from loom.net.serving import Serving
from loom.net.sockets import address_host, address_text

THERE = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"], "eth0": ["10.0.0.5", "fd00::5", "fe80::5%eth0"]}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "interfaces", lambda: THERE)


def test_loopback_is_an_interface_like_others() -> None:
    assert interfaces.interfaces()["lo"][0] == "127.0.0.1"
    assert interface_address("lo") == "127.0.0.1"


def test_what_is_no_interface_is_refused_with_those_there_are(machine: None) -> None:
    assert interface_address("eth0") == "10.0.0.5"
    with pytest.raises(LoomError, match=r"there is no interface ib0; this machine has lo .*; eth0 .10.0.0.5, fd00::5"):
        interface_address("ib0")


def test_usual_address_is_that_of_the_default_route(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "_default_interfaces", lambda: ["gone0", "eth0"])
    assert usual_address() == "10.0.0.5"
    monkeypatch.setattr(interfaces, "interfaces", lambda: {"lo": ["127.0.0.1"]})
    assert usual_address() == "127.0.0.1"


def test_which_addresses_are_here() -> None:
    assert is_here("127.0.0.1")
    assert not is_here("203.0.113.7")
    assert not is_here("a.name")


@pytest.mark.parametrize(
    ("serving", "listens_at", "told"),
    [
        (Serving(), "10.0.0.5", ("10.0.0.5", 7)),
        (Serving(host="203.0.113.7"), "0.0.0.0", ("203.0.113.7", 7)),
        (Serving(host="203.0.113.7", told_port=9), "0.0.0.0", ("203.0.113.7", 9)),
        (Serving(host="a.name"), "0.0.0.0", ("a.name", 7)),
        (Serving(host="2001:db8::7"), "::", ("2001:db8::7", 7)),
        (Serving(host="127.0.0.1"), "127.0.0.1", ("127.0.0.1", 7)),
        (Serving(host="10.0.0.5"), "10.0.0.5", ("10.0.0.5", 7)),
        (Serving(interface="lo"), "127.0.0.1", ("127.0.0.1", 7)),
        (Serving(interface="lo", host="203.0.113.7"), "127.0.0.1", ("203.0.113.7", 7)),
    ],
)
def test_where_a_worker_serves_its_objects(serving: Serving, listens_at: str, told: tuple[str, int]) -> None:
    assert serving.listens_at("10.0.0.5") == listens_at
    assert serving.told(listens_at, 7) == told


def test_link_local_addresses() -> None:
    assert address_host(("fe80::1", 80, 0, 3)) == "fe80::1%3"
    assert address_host(("fd00::1", 80, 0, 0)) == "fd00::1"
    assert address_text(("::ffff:10.0.0.5", 80, 0, 0)) == "10.0.0.5:80"
    assert Serving().listens_at("fe80::1%3") == "fe80::1%3"
    assert Serving().told("fe80::1%3", 7) == ("fe80::1", 7)


def test_ids_of_hosts() -> None:
    text = handover_text("loom-12", "a@b")
    assert handover_name(text, "a@b") == "loom-12"
    assert handover_name(text, "") == "loom-12"
    assert handover_name(text, "c") == ""
    assert handover_name(handover_text("loom-12", ""), "c") == "loom-12"
    assert handover_name("", "c") == ""


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("login", ("login", 0)),
        ("login.example:9010", ("login.example", 9010)),
        ("10.0.0.5:1", ("10.0.0.5", 1)),
        ("fd00::5", ("fd00::5", 0)),
        ("[fd00::5]", ("fd00::5", 0)),
        ("[fd00::5]:65535", ("fd00::5", 65535)),
        ("login:", None),
        ("login:0", None),
        ("login:65536", None),
        ("login:http", None),
        (":9010", None),
        ("[fd00::5", None),
        ("[fd00::5]9010", None),
        ("two words", None),
        ("", None),
        ("x" * 1000, None),
    ],
)
def test_addresses_as_people_write_them(text: str, address: tuple[str, int] | None) -> None:
    context, parameter = click.Context(server.main), server.main.params[0]
    if address is None:
        with pytest.raises(click.BadParameter, match="is no address: give HOST, HOST:PORT or"):
            options._checked_address(context, parameter, text)
    else:
        assert options._checked_address(context, parameter, text) == address


@pytest.mark.parametrize(
    ("command", "arguments", "complaint"),
    [
        (server.main, ["--interface", "eth99"], "there is no interface eth99; this machine has lo (127.0.0.1"),
        (server.main, ["--interface", "lo", "--host", "127.0.0.1"], "--host and --interface both say where to listen"),
        (server.main, ["--advertise", "a:b"], "'a:b' is no address"),
        (worker.main, ["localhost", "--interface", "eth99"], "there is no interface eth99; this machine has lo"),
        (worker.main, ["localhost", "--object-port", "70000"], "70000 is not in the range"),
        (worker.main, ["localhost", "--host-id", ""], "give printable text of 1 to"),
        (worker.main, ["localhost", "--host-id", "x" * 1000], "give printable text of 1 to"),
    ],
)
def test_options_that_make_no_sense(command: click.Command, arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert complaint in done.output
