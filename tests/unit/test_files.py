"""Files and folders that users name."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from loom.executors.removal import remove_folder
from loom.files import OWN_FOLDER, SHOWN_FOLDER, make_folders, write_shown


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [OWN_FOLDER, SHOWN_FOLDER])
@pytest.mark.parametrize("end", ["", "/", "//"])
def test_every_folder_on_the_way_has_the_mode(tmp_path: Path, no_umask: None, mode: int, end: str) -> None:
    make_folders(f"{tmp_path}/a//b/./c{end}", mode)
    make_folders(os.fsencode(f"{tmp_path}/a/b/c/../d{end}"), mode)
    for name in ("a", "a/b", "a/b/c", "a/b/d"):
        assert mode_of(tmp_path / name) == mode


def test_what_is_there_stays_as_it_is(tmp_path: Path, no_umask: None) -> None:
    tmp_path.chmod(0o711)
    make_folders(str(tmp_path), OWN_FOLDER)
    make_folders("/", OWN_FOLDER)
    assert mode_of(tmp_path) == 0o711


def test_a_very_deep_folder(here: Path) -> None:
    make_folders("d/" * 1900, OWN_FOLDER)
    assert os.path.isdir("d/" * 1900)
    remove_folder("d")  # pytest could not


@pytest.mark.parametrize("path", ["/proc/no/such", "file/a/b", "file", "loop/a", "dangling/a/b", ""])
def test_where_none_can_be_made(here: Path, path: str) -> None:
    (here / "file").touch()
    (here / "loop").symlink_to("loop")
    (here / "dangling").symlink_to("nowhere")
    with pytest.raises(OSError, match=r"No such|Not a|File exists|Too many"):
        make_folders(path, OWN_FOLDER)


@pytest.mark.parametrize(("umask", "mode"), [(0, 0o644), (0o022, 0o644), (0o077, 0o600)])
def test_a_file_to_be_shown_follows_the_umask_but_others_never_write_it(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_shown(tmp_path / "report", b"long content")
        write_shown(tmp_path / "report", b"content")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "report") == mode
    assert (tmp_path / "report").read_bytes() == b"content"
