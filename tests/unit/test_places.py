"""Address files, and who is asked where the server is."""

import asyncio
import os
from pathlib import Path

import pytest

from loom.errors import ConnectError, KeyRefused, LoomError
from loom.net.places import CalledPlace, FilePlace, FixedPlace, read_address, remove_address, write_address


def test_a_file_is_read_each_time(tmp_path: Path) -> None:
    path = str(tmp_path / "address")
    place = FilePlace(path)
    with pytest.raises(ConnectError, match="no server has written its address to"):
        asyncio.run(place.find())
    write_address(path, "node1", 9010)
    assert asyncio.run(place.find()) == ("node1", 9010)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    write_address(path, "fe80::1", 9011)
    assert asyncio.run(place.find()) == ("fe80::1", 9011)
    assert [file.name for file in tmp_path.iterdir()] == ["address"]


def test_it_is_removed_by_the_server_that_wrote_it(tmp_path: Path) -> None:
    path = str(tmp_path / "address")
    write_address(path, "node2", 9010)
    remove_address(path, "node1", 9010)
    assert read_address(path) == ("node2", 9010)
    remove_address(path, "node2", 9010)
    assert not list(tmp_path.iterdir())
    remove_address(path, "node2", 9010)


@pytest.mark.parametrize(
    "content", [b"", b"node1", b"node1 x", b"node1 0", b"node1 65536", b"a b c", b"\xff\xfe 1 2", "node1 ²".encode()]
)
def test_what_is_no_address_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "address"
    path.write_bytes(content)
    with pytest.raises(ConnectError, match="is no address file"):
        read_address(str(path))


def test_where_none_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match=r"the address file .* cannot be written: No such file or directory"):
        write_address(str(tmp_path / "nowhere" / "address"), "node1", 9010)
    with pytest.raises(LoomError, match="cannot be written"):
        write_address(str(tmp_path), "node1", 9010)
    assert not list(tmp_path.iterdir()), "no draft stays"


def test_a_function_is_asked_in_a_thread() -> None:
    assert asyncio.run(CalledPlace(lambda: ("a", 1), "engine").find()) == ("a", 1)

    def fails() -> tuple[str, int]:
        raise ValueError("no such actor")

    def refuses() -> tuple[str, int]:
        raise KeyRefused("another key")

    with pytest.raises(ConnectError, match="engine does not say where the server is: no such actor"):
        asyncio.run(CalledPlace(fails, "engine").find())
    with pytest.raises(KeyRefused):
        asyncio.run(CalledPlace(refuses, "engine").find())


def test_for_people() -> None:
    assert str(FixedPlace("node1", 9010)) == "node1:9010"
    assert str(FixedPlace("::1", 9010)) == "[::1]:9010"


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "address")
    with pytest.raises(ConnectError, match="is no address file"):
        read_address(str(tmp_path / "address"))


def test_which_of_them_may_say_something_else_later(tmp_path: Path) -> None:
    assert not FixedPlace("node1", 9010).may_move
    assert FilePlace(tmp_path / "address").may_move
    assert CalledPlace(lambda: ("a", 1), "engine").may_move
