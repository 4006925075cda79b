"""The key is made once, is the same for everybody who asks, and is refused where others can read it."""

import multiprocessing
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from traceback import TracebackException

import pytest
from rich.pretty import pretty_repr

from loom.errors import LoomError
from loom.wire.keys import KEY_BYTES, Key, key_path, load_key, new_key, rotate_key


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


def test_the_file_that_is_named_comes_first(path: Path, tmp_path: Path) -> None:
    named = tmp_path / "named"
    new_key(named)
    for form in (named, str(named)):
        assert key_path(form) == named
        assert load_key(form) != load_key()
    assert load_key(named) == load_key(str(named))


@pytest.mark.parametrize("named", ["", "a\0b", b"key", 5])
def test_name_that_is_none(named: object) -> None:
    with pytest.raises(LoomError, match="is no file name"):
        key_path(named)  # type: ignore[arg-type]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077, 0o777])
def test_every_directory_that_is_made_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a" / "b" / "key"
    before = os.umask(umask)
    try:
        new_key(path)
    finally:
        os.umask(before)
    assert [p.stat().st_mode & 0o777 for p in (path.parent.parent, path.parent, path)] == [0o700, 0o700, 0o600]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_directory_that_others_can_write_to(path: Path, mode: int) -> None:
    load_key()
    path.parent.chmod(mode)
    for call in (load_key, rotate_key):
        with pytest.raises(LoomError, match=rf"others can write to .*{mode:04o}.*chmod go-w .*--key-file"):
            call()
    path.unlink()
    for call in (load_key, new_key):
        with pytest.raises(LoomError, match="others can write to"):
            call()
    assert not path.exists()


def test_sticky_directory_and_one_that_others_can_read(path: Path) -> None:
    key = load_key()
    for mode in (0o1777, 0o755):
        path.parent.chmod(mode)
        assert load_key() == key


def test_directory_behind_a_symbolic_link_that_others_can_write_to(path: Path, tmp_path: Path) -> None:
    load_key()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path.rename(elsewhere / "key")
    path.symlink_to(elsewhere / "key")
    elsewhere.chmod(0o777)
    with pytest.raises(LoomError, match=f"others can write to the directory of the key file, {elsewhere}"):
        load_key()


def test_mounted_secret(path: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts them: a link to a link to a directory, which is exchanged for another."""
    new_key(tmp_path / "real" / "key")
    key = load_key(tmp_path / "real" / "key")
    path.parent.mkdir()
    (path.parent / "..data").symlink_to(tmp_path / "real")
    path.symlink_to(Path("..data", "key"))
    (tmp_path / "real" / "key").chmod(0o400)
    assert load_key() == key


def test_symbolic_link_to_nothing(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "nothing")
    for call in (load_key, new_key):
        with pytest.raises(LoomError, match=r"symbolic link to .*nothing, which does not exist"):
            call()
    with pytest.raises(LoomError, match=r"no key file.*loom key new"):
        rotate_key()
    assert not (tmp_path / "nothing").exists()


def test_of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_key()
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(LoomError, match=r"belongs to the user .*, who has to do this"):
        rotate_key()
    if owner == 0:  # root's are everybody's
        assert load_key()
    if os.getuid() == 0:
        os.chown(path, 4711, -1)
    with pytest.raises(LoomError, match=r"key file .* belongs to the user .*--key-file"):
        load_key()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give directories away")
def test_in_a_directory_of_another_user(path: Path) -> None:
    load_key()
    os.chown(path.parent, 4711, -1)
    with pytest.raises(LoomError, match=r"the directory of the key file, .*, belongs to the user 4711.*--key-file"):
        load_key()


@pytest.mark.parametrize("text", ["ab" * 33, "ab" * 32 + "x", "ab" * 31 + "x"])
def test_no_error_shows_what_the_file_holds(path: Path, text: str) -> None:
    """Not in the local variables of its frames either, which some tracebacks show."""
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(LoomError) as caught:
        load_key()
    assert caught.tb is not None
    below = caught.tb.tb_next  # this function has it
    lines = TracebackException(LoomError, caught.value, below, capture_locals=True).format()
    said = "".join(lines)
    assert "descriptor = " in said
    assert "abab" not in said


def test_key_shows_itself_nowhere() -> None:
    key = Key(range(KEY_BYTES))
    for shown in (repr(key), str(key), f"{key}", "%s %r" % (key, [key]), pretty_repr({"key": key})):  # noqa: UP031
        assert "<key>" in shown
        assert "\\x" not in shown
    assert bytes(key) == key == bytes(range(KEY_BYTES))


def test_new(path: Path) -> None:
    assert new_key() == path
    key = load_key()
    with pytest.raises(LoomError, match=r"there is a key file already.*loom key rotate"):
        new_key()
    assert load_key() == key
    assert os.listdir(path.parent) == ["key"]


def test_rotate(path: Path) -> None:
    with pytest.raises(LoomError, match=r"there is no key file .* yet: `loom key new` makes one"):
        rotate_key()
    old = load_key()
    certificate = path.with_name("key.pem")
    certificate.write_text("# loom 0123: made from the old key")
    assert rotate_key() == path
    assert load_key() != old
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["key"]


def test_rotate_what_others_could_read(path: Path) -> None:
    old = load_key()
    path.chmod(0o666)
    rotate_key()
    assert load_key() != old


def test_rotate_behind_a_symbolic_link(path: Path, tmp_path: Path) -> None:
    old = load_key()
    path.rename(tmp_path / "real")
    path.symlink_to(tmp_path / "real")
    rotate_key()
    assert path.is_symlink()
    assert load_key() == load_key(tmp_path / "real") != old


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_rotate_what_is_no_file(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    make(path)
    with pytest.raises(LoomError, match="not a regular file"):
        rotate_key()
    assert path.exists()


def test_rotate_leaves_the_old_key_where_it_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = load_key()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(LoomError, match="cannot be replaced: No space left"):
                rotate_key()
        assert load_key() == old
        assert os.listdir(path.parent) == ["key"]


def test_readers_meet_one_key_or_the_other(path: Path) -> None:
    keys = {load_key()}
    over = threading.Event()
    met: set[bytes] = set()

    def read() -> None:
        while not over.is_set():
            met.add(load_key())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        rotate_key()
        keys.add(load_key())
    over.set()
    reader.join()
    assert met <= keys


def test_what_is_no_key_is_not_overwritten(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    for text in ("hello", "", "0" * 63, "0" * 200):
        precious.write_text(text)
        for call in (rotate_key, load_key):
            with pytest.raises(LoomError, match="does not hold a key"):
                call(precious)
        with pytest.raises(LoomError, match="there is a key file already"):
            new_key(precious)
        assert precious.read_text() == text
    with pytest.raises(LoomError, match="is a directory"):
        new_key(tmp_path)


def test_certificate_of_something_else_stays(path: Path) -> None:
    load_key()
    other = path.with_name("key.pem")
    other.write_text("-----BEGIN PRIVATE KEY-----")
    rotate_key()
    assert other.read_text() == "-----BEGIN PRIVATE KEY-----"


def test_named_file_that_is_missing_is_not_made(path: Path, tmp_path: Path) -> None:
    named = tmp_path / "missing" / "key"
    with pytest.raises(LoomError, match=rf"there is no key file {named}: .*loom key new --key-file {named}"):
        load_key(named)
    assert not named.parent.exists()


def test_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert key_path("~/here") == tmp_path / "here"
    monkeypatch.setenv("LOOM_KEY_FILE", "~/there")
    assert key_path() == tmp_path / "there"
