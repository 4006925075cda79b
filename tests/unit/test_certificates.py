"""One authority for each key: who has the key is accepted by all others who have it, whatever files there are."""

import os
import ssl
import sys
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.wire.certificates import certificate_path, encryption_context

KEY = bytes(range(32))
OTHER_KEY = bytes(32)


def shake(accepting: ssl.SSLContext, connecting: ssl.SSLContext) -> ssl.SSLObject:
    """The two ends in memory; the connecting one. Raises ssl.SSLError."""
    to_a, to_b = ssl.MemoryBIO(), ssl.MemoryBIO()
    a = accepting.wrap_bio(to_a, to_b, server_side=True)
    b = connecting.wrap_bio(to_b, to_a)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in (b, a):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    a.write(b"hello")
    assert b.read(5) == b"hello"
    return b


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "key"


def test_two_machines_with_one_key(tmp_path: Path) -> None:
    """Each has made its own certificate."""
    ours = encryption_context(KEY, tmp_path / "a", accepting=True)
    theirs = encryption_context(KEY, tmp_path / "b", accepting=False)
    assert (tmp_path / "a.pem").read_text() != (tmp_path / "b.pem").read_text()
    assert shake(ours, theirs).version() == "TLSv1.3"


@pytest.mark.parametrize("who", ["accepting", "connecting"])
def test_other_key_is_refused(who: str, key_file: Path) -> None:
    ours = encryption_context(KEY if who == "connecting" else OTHER_KEY, None, accepting=True)
    theirs = encryption_context(KEY if who == "accepting" else OTHER_KEY, None, accepting=False)
    with pytest.raises(ssl.SSLError):
        shake(ours, theirs)


def test_no_certificate_is_refused() -> None:
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        shake(encryption_context(KEY, None, accepting=True), stranger)


def test_older_tls_is_refused() -> None:
    old = encryption_context(KEY, None, accepting=False)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake(encryption_context(KEY, None, accepting=True), old)


def test_certificate_is_kept_for_its_owner_alone(key_file: Path) -> None:
    before = os.umask(0)
    try:
        encryption_context(KEY, key_file, accepting=True)
    finally:
        os.umask(before)
    path = certificate_path(key_file)
    assert path.stat().st_mode & 0o777 == 0o600
    kept = path.read_text()
    encryption_context(KEY, key_file, accepting=False)
    assert path.read_text() == kept
    assert KEY.hex() not in kept
    assert os.listdir(key_file.parent) == [path.name], "no draft is left"


def test_kept_certificate_needs_no_library(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encryption_context(KEY, key_file, accepting=True)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    context = encryption_context(KEY, key_file, accepting=True)
    with pytest.raises(LoomError, match="needs the package cryptography"):
        encryption_context(OTHER_KEY, key_file, accepting=True)
    monkeypatch.undo()
    shake(context, encryption_context(KEY, None, accepting=False))


@pytest.mark.parametrize("what", ["of another key", "cut short", "open to others"])
def test_certificate_that_is_no_good_is_made_again(what: str, key_file: Path) -> None:
    path = certificate_path(key_file)
    encryption_context(OTHER_KEY if what == "of another key" else KEY, key_file, accepting=True)
    before = path.read_text()
    match what:
        case "cut short":
            path.write_text(before[: len(before) // 2])
        case "open to others":
            path.chmod(0o644)
    shake(encryption_context(KEY, key_file, accepting=True), encryption_context(KEY, None, accepting=False))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() != before


@pytest.mark.parametrize("what", ["another program's", "empty", "noise", "a link", "a fifo", "a folder"])
def test_something_else_of_that_name_is_left_alone(what: str, key_file: Path, tmp_path: Path) -> None:
    path = certificate_path(key_file)
    elsewhere = tmp_path / "elsewhere"
    match what:
        case "another program's":
            path.write_text("-----BEGIN PRIVATE KEY-----\n")
        case "empty":
            path.touch()
        case "noise":
            path.write_bytes(bytes(range(256)) * 10)
        case "a link":
            encryption_context(KEY, elsewhere, accepting=True)
            path.symlink_to(certificate_path(elsewhere))
        case "a fifo":
            os.mkfifo(path, 0o600)
        case "a folder":
            path.mkdir()
    before = path.lstat()
    shake(encryption_context(KEY, key_file, accepting=True), encryption_context(KEY, None, accepting=False))
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)


def test_no_place_to_keep_it(tmp_path: Path) -> None:
    nowhere = tmp_path / "missing" / "key"
    ours = encryption_context(KEY, nowhere, accepting=True)
    shake(ours, encryption_context(KEY, nowhere, accepting=False))
    assert not nowhere.parent.exists()
