"""Manifests for Kubernetes: what they look like, that the API would take them, and that their parts fit together."""

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.cli.main import main
from loom.cli.server import main as server_main
from loom.cli.worker import main as worker_main
from loom.deploy.kubernetes import SERVICES, Settings, render
from loom.deploy.kubernetes.manifests import USER
from loom.deploy.kubernetes.yaml import to_yaml
from loom.errors import LoomError
from loom.wire.keys import new_key

GOLDEN = Path(__file__).parent / "golden" / "kubernetes.yaml"
ROOT = Path(__file__).parents[2]
IMAGE = "registry.example/loom:1"
VERSIONS = [f"1.{minor}" for minor in range(25, 38)]

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "name": "a-rather-long-name-of-a-cluster-1",
        "namespace": "team-1",
        "workers": 3,
        "max_workers": 40,
        "cpus": 16,
        "memory": "64GiB",
        "store": "10GiB",
        "gpus": 2,
        "server_memory": "8GiB",
        "journal": "1TiB",
        "storage_class": "fast.ssd",
        "service": "LoadBalancer",
        "secret": "my.key",
        "pull_secret": "registry",
        "drain_s": 600,
        "cpu_target": 90,
    },
    "little": {"journal": "", "network_policy": False, "workers": 1, "memory": "256MiB", "drain_s": 0},
    "scaled": {"max_workers": 10},
    "node port": {"service": "NodePort"},
    "gpus": {"gpus": 1},
}


def loaded(key: str = "", **options: Any) -> dict[str, dict[str, Any]]:
    """The documents as another program reads them, by kind and name."""
    documents = yaml.safe_load_all(render(Settings(image=IMAGE, **options), "/home/ada/.config/loom/key", key))
    return {f"{one['kind']} {one['metadata']['name']}": one for one in documents}


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["deploy", *arguments])


def test_what_is_rendered_is_what_was_agreed() -> None:
    text = render(Settings(image=IMAGE, max_workers=10), "/home/ada/.config/loom/key")
    if os.environ.get("LOOM_WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "if it is meant: LOOM_WRITE_GOLDEN=1, and read the difference"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_schemas_of_the_api_take_it(options: dict[str, Any]) -> None:
    for version in VERSIONS[:: 1 if options == OPTIONS["everything"] else 6]:
        for document in loaded("00" * 32 + "\n", **options).values():
            kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_would_find_something() -> None:
    document = loaded()["Deployment loom-worker"]
    document["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_its_parts_fit_together(options: dict[str, Any]) -> None:
    documents = loaded(**options)
    name = options.get("name", "loom")
    server, workers = documents[f"StatefulSet {name}-server"], documents[f"Deployment {name}-worker"]
    assert {one["metadata"].get("namespace", "") for one in documents.values()} == {options.get("namespace", "")}
    for one in (server, workers):
        template = one["spec"]["template"]
        assert one["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
        claims = [claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])]
        volumes = [*(volume["name"] for volume in template["spec"]["volumes"]), *claims]
        containers = [*template["spec"]["initContainers"], *template["spec"]["containers"]]
        mounted = [mount["name"] for container in containers for mount in container["volumeMounts"]]
        assert set(mounted) == set(volumes)
        assert len(set(volumes)) == len(volumes)
    service = documents[f"Service {name}-server"]["spec"]
    assert service["selector"] == server["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] != workers["spec"]["template"]["metadata"]["labels"]
    assert server["spec"]["serviceName"] == f"{name}-server"
    scaler = documents.get(f"HorizontalPodAutoscaler {name}-worker")
    assert (scaler is None) == ("replicas" in workers["spec"])
    assert not any(kind.startswith("Secret") for kind in documents)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_its_commands_are_ours(options: dict[str, Any]) -> None:
    documents = loaded(**options)
    name = options.get("name", "loom")
    for kind, command_of in (("StatefulSet", server_main), ("Deployment", worker_main)):
        component = "server" if kind == "StatefulSet" else "worker"
        pod = documents[f"{kind} {name}-{component}"]["spec"]["template"]["spec"]
        program, *arguments = pod["containers"][0]["command"]
        assert program == f"loom-{component}"
        values = command_of.make_context(program, arguments).params
        if component == "worker":
            assert values["host"] == f"{name}-server"
            assert values["cpus"] == options.get("cpus", 2)
            assert values["mem"] + values["memory"] == Settings(image=IMAGE, **options).memory_mib << 20
            assert pod["terminationGracePeriodSeconds"] > values["drain_timeout"]
        else:
            assert (values["journal"] is None) == (options.get("journal") == "")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pods_may_do_no_more_than_they_have_to(options: dict[str, Any]) -> None:
    for document in loaded(**options).values():
        pod = document["spec"].get("template", {}).get("spec")
        if pod is None:
            continue
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in (*pod["initContainers"], *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("name", ""),
        ("name", "Loom"),
        ("name", "1loom"),
        ("name", "loom-"),
        ("name", "loom_1"),
        ("name", "loom.1"),
        ("name", "loom\n"),
        ("name", "a" * 39),
        ("name", "löom"),
        ("namespace", "a.b"),
        ("namespace", "-a"),
        ("namespace", "a" * 64),
        ("secret", "a..b"),
        ("secret", "x: y"),
        ("pull_secret", "A"),
        ("storage_class", "a b"),
        ("storage_class", "a" * 254),
        ("image", ""),
        ("image", "a b"),
        ("image", "a\nb"),
        ("image", "-a"),
        ("image", "a" * 513),
        ("service", "ExternalName"),
        ("workers", 0),
        ("workers", True),
        ("max_workers", 1),
        ("cpus", 0),
        ("gpus", -1),
        ("memory", "much"),
        ("memory", "1MiB"),
        ("store", "4GiB"),
        ("server_memory", "1"),
        ("journal", "1kB"),
        ("drain_s", -1),
        ("cpu_target", 101),
    ],
)
def test_what_the_api_would_refuse_is_refused_here(option: str, value: Any) -> None:
    with pytest.raises(LoomError):
        Settings(**{"image": IMAGE, option: value})


def test_the_key_is_in_it_only_where_somebody_says_so(tmp_path: Path) -> None:
    key_file = new_key(tmp_path / "key")
    key = key_file.read_text()
    arguments = ("kubernetes", "--render", "--image", IMAGE, "--key-file", str(key_file), "--namespace", "n")
    without = command(*arguments)
    assert without.exit_code == 0
    assert key.strip() not in without.output
    says = f"kubectl create secret generic loom-key --from-file=key={key_file} --namespace=n"
    assert says in without.stdout
    assert says in without.stderr
    output = tmp_path / "loom.yaml"
    with_key = command(*arguments, "--with-key", str(key_file), "--output", str(output))
    assert with_key.exit_code == 0
    assert key.strip() not in with_key.output
    secret = next(one for one in yaml.safe_load_all(output.read_text()) if one["kind"] == "Secret")
    assert secret["stringData"] == {"key": key}
    assert output.stat().st_mode & 0o777 == 0o600
    key_file.chmod(0o644)
    assert "is open to others" in command(*arguments, "--with-key", str(key_file)).stderr


def test_the_secret_command_is_one_line_of_a_comment() -> None:
    text = render(Settings(image=IMAGE), "/home/ada/a\nkind: Secret\n")
    assert "kind: Secret" not in text


def test_the_command_says_what_to_do() -> None:
    overview = command()
    assert overview.exit_code == 0
    for word in ("SSHCluster", "SlurmCluster", "RayCluster", "DaskCluster", "loom deploy kubernetes --render"):
        assert word in overview.output
    assert "--render" in command("kubernetes", "--image", IMAGE).stderr
    assert "--image" in command("kubernetes", "--render").stderr
    refused = command("kubernetes", "--render", "--image", IMAGE, "--name", "My_Loom")
    assert refused.exit_code == 1
    assert "lower-case" in refused.stderr
    help_text = command("kubernetes", "--help").output
    assert "kubectl apply -f loom.yaml" in help_text
    assert all(service in help_text for service in SERVICES)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    for with_key in ((), ("--with-key", str(new_key(tmp_path / "key")))):
        result = command("kubernetes", "--render", "--image", IMAGE, "-o", str(tmp_path / "no" / "file"), *with_key)
        assert result.exit_code == 1
        assert "cannot be written: No such file" in result.stderr


keys = st.text(max_size=60)
scalars = st.text() | st.integers() | st.booleans()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=20)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(keys, values, min_size=1))
def test_yaml_is_read_as_what_was_written(value: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


@pytest.mark.parametrize("text", ["yes", "No", "on", "null", "~", "1", "1e3", "0x1", "2001-01-01", "a: b", "a #b", ""])
def test_yaml_text_stays_text(text: str) -> None:
    assert yaml.safe_load(to_yaml({text: [text, {text: text}]})) == {text: [text, {text: text}]}


def test_the_container_recipe_fits_the_manifests() -> None:
    lines = (ROOT / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    known = {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "LABEL", "CMD"}
    assert {step for step, _ in steps} <= known
    stages = [rest for step, rest in steps if step == "FROM"]
    assert len(stages) == 2
    assert stages[0].endswith(" AS build")
    assert [rest for step, rest in steps if step == "USER"] == [f"{USER}:{USER}"]
    for rest in (rest for step, rest in steps if step == "COPY" and not rest.startswith("--from=")):
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in (ROOT / ".dockerignore").read_text().split()
