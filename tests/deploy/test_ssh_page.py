"""The page about ssh: its last part, from nothing, by its own commands."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from needs import needs
from sshd import PRIVILEGES

PAGE = Path(__file__).parents[2] / "docs" / "ssh.md"


def test_what_the_page_says_to_try(tmp_path: Path) -> None:
    needs("sshd", package="openssh-server")
    needs("ssh", package="openssh-client")
    if os.geteuid() == 0:
        PRIVILEGES.mkdir(mode=0o755, exist_ok=True)
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    console, _said = re.findall(r"```(?:console)?\n(.*?)```", PAGE.read_text().partition("## Trying it")[2], re.DOTALL)
    commands = re.sub(r"(?m)^\$ ", "", console).replace("2222", str(port))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["sh", "-ec", commands]
    try:
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50)
    finally:
        number = tmp_path / "try" / "sshd.pid"  # which is gone when sshd was ended
        if number.exists():
            os.kill(int(number.read_text()), signal.SIGTERM)
    assert ran.returncode == 0, ran.stderr
    assert "  ssh-127.0.0.3-2  running    1 cpus" in ran.stdout
    assert f"127.0.0.2 {port}" in ran.stdout.splitlines()[-1]
    assert f"127.0.0.3 {port}" in ran.stdout.splitlines()[-1]
