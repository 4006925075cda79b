"""What the manifests run, as a kubelet would run it. It is not Kubernetes: it has neither its network nor an image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pods import Network, Pod, needs_namespaces, run_in

from clusters import eventually
from loom.deploy.kubernetes import Settings, render
from loom.wire.keys import key_path, new_key

CLIENT = """
import json, sys
from loom.client import Client, tasks
with Client("127.0.0.1", session="night", connect_timeout_s=20) as client:
    if "kept" not in client.future_names():
        client.submit_one(tasks.const("of before"), name="kept").wait()
    large = tasks.run(("head", "-c", "3000000", "/dev/zero"))
    size, user, kept = client.gather(client.submit([
        tasks.run(("wc", "-c"), stdin=large), tasks.run(("id", "-u")), tasks.merge((client.future("kept"),))
    ]))
    print(json.dumps([size.decode(), user.decode(), kept.decode()]))
"""


@pytest.fixture
def network() -> Iterator[Network]:
    needs_namespaces()
    network = Network()
    yield network
    network.remove()


def test_pods_run_tasks_and_come_back(network: Network, tmp_path: Path) -> None:
    key_file = key_path()
    if not key_file.exists():
        new_key()
    key = key_file.read_text()
    settings = Settings(image="loom", cpus=1, memory="512MiB", workers=1)
    documents = {one["kind"]: one for one in yaml.safe_load_all(render(settings, str(key_file), key))}
    secrets = {documents["Secret"]["metadata"]["name"]: documents["Secret"]["stringData"]}
    (tmp_path / "claim").mkdir()
    name = documents["Service"]["metadata"]["name"]

    def pod(kind: str, claims: dict[str, Path]) -> Pod:
        spec: dict[str, Any] = documents[kind]["spec"]["template"]["spec"]
        return Pod(tmp_path / kind, network, spec, secrets, claims, [name])

    worker = pod("Deployment", {})
    server = pod("StatefulSet", {"journal": tmp_path / "claim"})
    try:
        eventually(lambda: server.answers("startupProbe"), what=f"the server: {server.log()}")
        eventually(lambda: worker.answers("readinessProbe"), what=f"the worker: {worker.log()}")
        assert server.answers("livenessProbe")
        expected = ["3000000\n", "10010\n", "of before"]
        assert run_in(network, CLIENT) == expected
        server.kill()
        eventually(lambda: not worker.answers("readinessProbe"), what="the worker to notice")
        server = pod("StatefulSet", {"journal": tmp_path / "claim"})
        eventually(lambda: worker.answers("readinessProbe"), what=f"the worker's return: {worker.log()}")
        assert run_in(network, CLIENT) == expected
        assert worker.terminate() == 0
        assert server.terminate() == 0
    finally:
        worker.stop()
        server.stop()
    for log in (worker.log(), server.log()):
        assert key.strip() not in log
        assert "Traceback" not in log
        assert "refused a connection" not in log
