"""Pods of a manifest without Kubernetes: what a kubelet would make of them, in namespaces of this machine.

The image is this machine's own file system, below an overlay that is read-only; volumes are mounted as the kubelet
mounts them (open to all, or to the group of the pod), and processes have the user and the rights of the manifest.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from needs import needs, needs_root, unless_all

from clusters import LEAVE_S, eventually

ROOT = Path(__file__).parents[2]
PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin"


def needs_namespaces() -> None:
    needs_root()
    for program in ("unshare", "nsenter", "setpriv"):
        needs(program, package="util-linux")
    needs("ip", package="iproute2")
    works = subprocess.run(["unshare", "-mnpf", "true"], capture_output=True).returncode == 0
    if not works or "overlay" not in Path("/proc/filesystems").read_text():
        unless_all("there are no namespaces and overlays here")


class Network:
    """One of its own, where all pods and clients are."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec sleep 600"], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"

    def words(self) -> list[str]:
        """Before a command that is to be in it."""
        return ["nsenter", "-t", str(self._holder.pid), "-n"]

    def remove(self) -> None:
        self._holder.kill()
        self._holder.communicate()


class Pod:
    """`spec` is that of a pod; `secrets` are the contents of their files by secret and name, `claims` the directories
    of claimed volumes. Each host name of `names` is this network's loopback.
    """

    def __init__(
        self,
        directory: Path,
        network: Network,
        spec: dict[str, Any],
        secrets: dict[str, dict[str, str]],
        claims: dict[str, Path],
        names: list[str],
    ) -> None:
        directory.mkdir(exist_ok=True)
        self._spec = spec
        self._user = spec["securityContext"]
        self._container = spec["containers"][0]
        self._log = directory / "log"
        place = directory / "image"
        place.mkdir(exist_ok=True)
        script = directory / "start.sh"
        script.write_text("\n".join(self._script(place, secrets, claims, names)))
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                [*network.words(), "unshare", "-mpf", "--kill-child", "sh", script],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def _script(
        self, place: Path, secrets: dict[str, dict[str, str]], claims: dict[str, Path], names: list[str]
    ) -> list[str]:
        group = self._user["fsGroup"]
        root = place / "root"
        lines = [
            "set -e",
            "mount --make-rprivate /",
            f"mount -t tmpfs tmpfs {place}",
            f"mkdir {place}/upper {place}/work {root}",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {root}",
            # as an image would be: everybody may read Python and Loom
            *(
                f"chmod a+x {root}{parent}"
                for path in (sys.base_prefix, ROOT)
                for parent in list(Path(path).parents)[:-1]
            ),
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"echo 127.0.0.1 localhost {' '.join(names)} > {root}/etc/hosts",
        ]
        mounts = {
            mount["name"]: root / mount["mountPath"].lstrip("/")
            for container in (*self._spec["initContainers"], self._container)
            for mount in container["volumeMounts"]
        }
        for name, claim in claims.items():
            lines += [f"mkdir -p {mounts[name]}", f"chown 0:{group} {claim}", f"chmod 2775 {claim}"]
            lines.append(f"mount --bind {claim} {mounts[name]}")
        for volume in self._spec["volumes"]:
            where = mounts[volume["name"]]
            if "secret" in volume:
                mode = volume["secret"]["defaultMode"]
                lines += [f"mkdir -p {where}", f"mount -t tmpfs tmpfs {where}"]
                for name, content in secrets[volume["secret"]["secretName"]].items():
                    lines.append(f"printf %s {shlex.quote(content)} > {where}/{name}")
                    lines += [f"chown 0:{group} {where}/{name}", f"chmod {mode:o} {where}/{name}"]
            else:
                size = volume["emptyDir"].get("sizeLimit", "1Gi").removesuffix("i").lower()
                options = f"mode=2777,gid={group},size={size}"
                lines += [f"mkdir -p {where}", f"mount -t tmpfs -o {options} tmpfs {where}"]
        lines.append(f"mount -o remount,bind,ro {root}")
        for container in self._spec["initContainers"]:
            lines.append(self._line(root, container))
        lines.append(f"exec {self._line(root, self._container)}")
        return lines

    def _line(self, root: Path, container: dict[str, Any]) -> str:
        user, group = self._user["runAsUser"], self._user["runAsGroup"]
        variables = [f"{one['name']}={one['value']}" for one in container.get("env", [])]
        rights = ("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        return shlex.join(
            [
                *("chroot", str(root), "setpriv", "--reuid", str(user), "--regid", str(group)),
                *("--groups", str(self._user["fsGroup"]), *rights, "env", "-i", f"PATH={PATH}", *variables),
                *container["command"],
            ]
        )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _first(self) -> psutil.Process:
        """The process that has the number 1 in there."""
        unshare = psutil.Process(self._process.pid)
        return eventually(lambda: unshare.children() or (self._process.poll() is not None and [unshare]))[0]

    def answers(self, probe: str) -> bool:
        """Whether the probe of that name succeeds."""
        command = self._container[probe]["exec"]["command"]
        user, group = str(self._user["runAsUser"]), str(self._user["runAsGroup"])
        variables = [f"{one['name']}={one['value']}" for one in self._container["env"]]
        into = ["nsenter", "-t", str(self._first().pid), "-m", "-p", "-n", "-r", "-S", user, "-G", group]
        said = subprocess.run([*into, "env", "-i", f"PATH={PATH}", *variables, *command], capture_output=True)
        return said.returncode == 0

    def kill(self) -> None:
        self._first().kill()
        self._process.wait(LEAVE_S)

    def terminate(self) -> int:
        """As the kubelet does. The status that the container ends with."""
        self._first().terminate()
        return self._process.wait(self._spec["terminationGracePeriodSeconds"])

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def run_in(network: Network, script: str, *arguments: str) -> Any:
    """What a Python script prints as JSON, run in that network."""
    command = [*network.words(), sys.executable, "-c", script, *arguments]
    said = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=50)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)
