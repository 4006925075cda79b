"""The key is made once, is the same for everybody who asks, and is refused where others can read it."""

import multiprocessing
import os
import re
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.wire.keys import KEY_BYTES, key_path, load_key


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "some" / "key"
    monkeypatch.setenv("LOOM_KEY_FILE", str(path))
    return path


def test_made_on_first_use_and_kept(path: Path) -> None:
    key = load_key()
    assert len(key) == KEY_BYTES
    assert load_key() == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == ["key"]


def test_two_files_two_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_key()
    monkeypatch.setenv("LOOM_KEY_FILE", f"{path}2")
    assert load_key() != first


def test_umask_does_not_open_or_close_it(path: Path) -> None:
    before = os.umask(0)
    try:
        load_key()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOOM_KEY_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert key_path() == tmp_path / "xdg" / "loom" / "key"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", ignored)
        assert key_path() == tmp_path / ".config" / "loom" / "key"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_open_to_others(path: Path, mode: int) -> None:
    load_key()
    path.chmod(mode)
    with pytest.raises(LoomError, match=f"open to others.*{mode:04o}.*chmod 600"):
        load_key()


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "ab" * 33, "\xff" * 64])
def test_malformed(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(LoomError, match=re.escape(str(path)) + ".*64 hexadecimal digits"):
        load_key()


def test_not_a_file(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(LoomError, match="not a regular file"):
        load_key()


def test_fifo_does_not_block(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(LoomError, match="not a regular file"):
        load_key()


def test_place_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOOM_KEY_FILE", str(tmp_path / "file" / "key"))
    with pytest.raises(LoomError, match=r"key file .* cannot be"):
        load_key()


def test_symbolic_link_to_a_key(path: Path, tmp_path: Path) -> None:
    key = load_key()
    path.rename(tmp_path / "real")
    path.symlink_to(tmp_path / "real")
    assert load_key() == key


def _load_when_all_are_there(
    barrier: "multiprocessing.synchronize.Barrier", keys: "multiprocessing.Queue[bytes]"
) -> None:
    barrier.wait()
    keys.put(load_key())


def test_processes_that_race_agree(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, keys = context.Barrier(8), context.Queue()
    racers = [context.Process(target=_load_when_all_are_there, args=(barrier, keys)) for _ in range(8)]
    for racer in racers:
        racer.start()
    assert len({keys.get(timeout=20) for _ in racers}) == 1
    for racer in racers:
        racer.join()
    assert os.listdir(path.parent) == ["key"]
