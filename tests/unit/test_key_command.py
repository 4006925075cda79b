"""`loom key new`, `show-path` and `rotate`, and `--key-file`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loom.cli.main import main
from loom.client import Client, LoomError
from loom.deploy import LocalCluster
from loom.wire.keys import load_key


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "key"
    monkeypatch.setenv("LOOM_KEY_FILE", str(path))
    return path


def test_new_makes_one_and_refuses_a_second(path: Path) -> None:
    made = run("key", "new")
    assert made.exit_code == 0
    assert made.stdout == f"{path}\n"
    key = load_key()
    refused = run("key", "new")
    assert refused.exit_code == 1
    assert f"there is a key file already, {path}; `loom key rotate` puts a new key there" in refused.stderr
    assert load_key() == key


def test_show_path(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run("key", "show-path")
    assert (shown.exit_code, shown.stdout) == (0, f"{path}\n")
    assert "does not exist yet" in shown.stderr
    assert not path.exists()
    run("key", "new")
    shown = run("key", "show-path")
    assert (shown.exit_code, shown.stdout, shown.stderr) == (0, f"{path}\n", "")
    assert run("key", "show-path", "--key-file", "other").stdout == "other\n"
    monkeypatch.delenv("LOOM_KEY_FILE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert run("key", "show-path").stdout == f"{tmp_path}/xdg/loom/key\n"


def test_rotate(path: Path) -> None:
    refused = run("key", "rotate")
    assert refused.exit_code == 1
    assert "loom key new" in refused.stderr
    run("key", "new")
    old = load_key()
    certificate = path.with_name("key.pem")
    certificate.write_text("# loom 0123")
    rotated = run("key", "rotate")
    assert rotated.exit_code == 0
    assert f"{path} holds a new key. Servers, workers and clients that run keep the old one" in rotated.stdout
    assert load_key() != old
    assert not certificate.exists()


def test_key_file_that_is_named(path: Path, tmp_path: Path) -> None:
    for verb in ("new", "rotate"):
        assert run("key", verb, "--key-file", str(tmp_path / "other")).exit_code == 0
    assert (tmp_path / "other").exists()
    assert not path.exists()


def test_no_command_prints_the_key(path: Path) -> None:
    said = "".join(run("key", verb).output for verb in ("new", "show-path", "new", "rotate", "show-path"))
    assert load_key().hex() not in said
    assert path.read_text().strip() not in said


@pytest.mark.parametrize("command", ["server", "worker", "sessions", "stats"])
def test_commands_that_need_a_key(command: str, tmp_path: Path) -> None:
    """They take the file that is named, and say what is wrong with it."""
    bad = tmp_path / "bad"
    bad.touch(mode=0o600)
    arguments = ["-p", "0"] if command == "server" else ["127.0.0.1", "1"]
    loom = [sys.executable, "-m", "loom.cli.main", command, "--key-file", str(bad), *arguments]
    ended = subprocess.run(loom, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert f"the key file {bad} does not hold a key" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["server", "worker", "key"])
def test_help_teaches_where_the_key_is(command: str) -> None:
    said = " ".join(run(command, "--help").stdout.split())
    assert "~/.config/loom/key" in said
    assert "share" in said
    assert "scp -p" in said
    assert "loom key --help" in said or command == "key"


def test_client_takes_a_key_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("0" * 64)
    bad.chmod(0o644)
    for arguments in ((), ("127.0.0.1", 1)):
        with pytest.raises(LoomError, match=rf"{bad} is open to others"):
            Client(*arguments, key_file=bad)  # type: ignore[arg-type]


def test_embedded_cluster_is_told_of_the_file_and_not_of_the_key(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("key", "new", "--key-file", "some.key")
    environments = []

    def popen(command: list[str], env: dict[str, str], **_: object) -> None:
        assert load_key("some.key").hex() not in " ".join([*command, *env.values()])
        environments.append(env)
        raise InterruptedError

    monkeypatch.setattr("loom.deploy.processes.subprocess.Popen", popen)
    with pytest.raises(InterruptedError):
        LocalCluster(key_file=Path("some.key")).start()
    assert environments[0]["LOOM_KEY_FILE"] == os.path.join(tmp_path, "some.key")
