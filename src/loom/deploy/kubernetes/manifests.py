"""The objects of the Kubernetes API that make a server and its workers. They are plain data here, and nothing is sent.

What a node, the kubelet and the controllers make of them was checked against their documentation and schemas, not on a
real cluster.
"""

from __future__ import annotations

from typing import Final

from loom.deploy.kubernetes.settings import Settings
from loom.deploy.kubernetes.yaml import Value

Manifest = dict[str, Value]

PORT: Final = 9010
USER: Final = 10010  # of nobody on the node; the container recipe has the same
_SECRET_MODE: Final = 0o440  # for the group of the pod: the secret's files belong to root
_KEY_FILE: Final = "/key/own/key"
_TEMPORARY: Final = "/scratch/own"
_STORE: Final = "/dev/shm/own"
_JOURNAL: Final = "/journal/loom.journal"
_MARGIN_S: Final = 30  # past the drain, for what ends the processes and removes what is left
_LOST_S: Final = 3600  # as long as workers keep results for a server that has gone away

# Loom refuses a key that others may read or replace, and a directory in which others may rename. What Kubernetes mounts
# is open to the pod's group and all, so there are directories inside of it that are not.
_MAKE_OWN: Final = "umask 077 && mkdir -p {directories} && install -m 600 /secret/key " + _KEY_FILE

# Both look at the kernel's table of connections. A connection that proves no key would be a warning in the log of the
# server each time. 0A is LISTEN, 01 is ESTABLISHED; addresses are in hexadecimal digits.
_LISTENS: Final = f"grep -qs ':{PORT:04X} 0*:0000 0A ' /proc/net/tcp /proc/net/tcp6"
_CONNECTED: Final = f"grep -qs ':{PORT:04X} 01 ' /proc/net/tcp /proc/net/tcp6"


def manifests(settings: Settings, key: str = "") -> list[Manifest]:
    """In the order in which they are to be applied. `key` is what the secret holds; without it there is no secret among
    them.
    """
    made = [_secret(settings, key)] if key else []
    made += [_service(settings), _server(settings), _workers(settings)]
    if settings.max_workers > settings.workers:
        made.append(_autoscaler(settings))
    if settings.network_policy:
        made.append(_policy(settings))
        if settings.service != "ClusterIP":
            made.append(_open_policy(settings))
    return made


def labels(settings: Settings, component: str = "") -> dict[str, Value]:
    own: dict[str, Value] = {"app.kubernetes.io/name": "loom", "app.kubernetes.io/instance": settings.name}
    if component:
        own["app.kubernetes.io/component"] = component
    return own


def _object(settings: Settings, api: str, kind: str, name: str, component: str = "") -> Manifest:
    metadata: dict[str, Value] = {"name": name}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    return {"apiVersion": api, "kind": kind, "metadata": {**metadata, "labels": labels(settings, component)}}


def _secret(settings: Settings, key: str) -> Manifest:
    made = _object(settings, "v1", "Secret", settings.secret_name)
    return {**made, "type": "Opaque", "stringData": {"key": key}}


def _service(settings: Settings) -> Manifest:
    return {
        **_object(settings, "v1", "Service", f"{settings.name}-server", "server"),
        "spec": {
            "type": settings.service,
            "selector": labels(settings, "server"),
            "ports": [{"name": "loom", "port": PORT, "targetPort": "loom", "protocol": "TCP"}],
        },
    }


def _server(settings: Settings) -> Manifest:
    """A stateful set, so that there are never two of them at a time, and its volume comes back to it."""
    command: list[Value] = ["loom-server", "--host", "0.0.0.0", "--port", str(PORT)]
    # What tasks were may take half of the memory; beyond that the oldest that are over are forgotten.
    command += ["--lineage-limit", f"{settings.server_memory_mib // 2}MiB"]
    volumes = ["key", "scratch"]
    if settings.journal:
        command += ["--journal", _JOURNAL]
    container = _container(settings, "server", command, volumes)
    if settings.journal:
        mounts = container["volumeMounts"]
        assert isinstance(mounts, list)
        mounts.append({"name": "journal", "mountPath": "/journal"})
    container |= {
        "ports": [{"name": "loom", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": "1", "memory": f"{settings.server_memory_mib}Mi"},
            "limits": {"memory": f"{settings.server_memory_mib}Mi"},
        },
        # A long journal is read before the server listens: ten minutes, then it is not coming.
        "startupProbe": _probe(_LISTENS, 2, 300),
        "readinessProbe": _probe(_LISTENS, 5, 1),
        # Whether it answers, as a client: seldom, and patiently, for a server that takes in a large plan is busy.
        "livenessProbe": {
            "exec": {"command": ["loom", "stats", "localhost", str(PORT)]},
            "periodSeconds": 60,
            "timeoutSeconds": 30,
            "failureThreshold": 5,
        },
    }
    spec: dict[str, Value] = {
        "serviceName": f"{settings.name}-server",
        "replicas": 1,
        "selector": {"matchLabels": labels(settings, "server")},
        "template": {
            "metadata": {"labels": labels(settings, "server")},
            "spec": _pod(settings, container, volumes, _MARGIN_S, {}),
        },
    }
    if settings.journal:
        claim: dict[str, Value] = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{settings.journal_mib}Mi"}},
        }
        if settings.storage_class:
            claim["storageClassName"] = settings.storage_class
        spec["volumeClaimTemplates"] = [{"metadata": {"name": "journal"}, "spec": claim}]
    return {**_object(settings, "apps/v1", "StatefulSet", f"{settings.name}-server", "server"), "spec": spec}


def _workers(settings: Settings) -> Manifest:
    command: list[Value] = [
        *("loom-worker", "--cpus", str(settings.cpus), "--gpus", str(settings.gpus)),
        *("--mem", f"{settings.memory_mib - settings.store_mib}MiB", "--memory", f"{settings.store_mib}MiB"),
        *("--wdir", _STORE, "--spill-dir", _TEMPORARY),
        "--nopin",  # pods of one node do not see each other, and would take the same cores
        *("--drain-timeout", str(settings.drain_s), "--lost-timeout", f"{_LOST_S}s"),
        *(f"{settings.name}-server", str(PORT)),
    ]
    # The same as requests and as limits: the kernel then takes memory from others first.
    amounts: dict[str, Value] = {"cpu": str(settings.cpus), "memory": f"{settings.memory_mib}Mi"}
    if settings.gpus:
        amounts["nvidia.com/gpu"] = str(settings.gpus)
    volumes = ["key", "scratch", "store"]
    container = _container(settings, "worker", command, volumes)
    container |= {
        "resources": {"requests": amounts, "limits": dict(amounts)},
        # No liveness: a worker that is stuck is lost to the server, and one that has no server for an hour ends.
        "readinessProbe": _probe(_CONNECTED, 5, 1),
    }
    spec: dict[str, Value] = {
        "selector": {"matchLabels": labels(settings, "worker")},
        "template": {
            "metadata": {"labels": labels(settings, "worker")},
            "spec": _pod(
                settings,
                container,
                volumes,
                settings.drain_s + _MARGIN_S,
                {"name": "store", "emptyDir": {"medium": "Memory", "sizeLimit": f"{settings.store_mib}Mi"}},
            ),
        },
    }
    if settings.max_workers <= settings.workers:  # else the number is the autoscaler's: one here would reset it
        spec = {"replicas": settings.workers, **spec}
    return {**_object(settings, "apps/v1", "Deployment", f"{settings.name}-worker", "worker"), "spec": spec}


def _autoscaler(settings: Settings) -> Manifest:
    """On how busy the cores are. Down slowly, and few at a time: each that goes hands over what it holds."""
    return {
        **_object(settings, "autoscaling/v2", "HorizontalPodAutoscaler", f"{settings.name}-worker", "worker"),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{settings.name}-worker"},
            "minReplicas": settings.workers,
            "maxReplicas": settings.max_workers,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": settings.cpu_target},
                    },
                }
            ],
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}],
                },
                "scaleDown": {
                    "stabilizationWindowSeconds": 300,
                    "policies": [{"type": "Percent", "value": 25, "periodSeconds": 60}],
                },
            },
        },
    }


def _policy(settings: Settings) -> Manifest:
    """Pods of the same namespace reach server and workers (which listen at ports of their choice), nobody else does."""
    return {
        **_object(settings, "networking.k8s.io/v1", "NetworkPolicy", settings.name),
        "spec": {
            "podSelector": {"matchLabels": labels(settings)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}]}],
        },
    }


def _open_policy(settings: Settings) -> Manifest:
    """The server's port is open where its service is for the outside."""
    return {
        **_object(settings, "networking.k8s.io/v1", "NetworkPolicy", f"{settings.name}-server", "server"),
        "spec": {
            "podSelector": {"matchLabels": labels(settings, "server")},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": PORT, "protocol": "TCP"}]}],
        },
    }


def _pod(
    settings: Settings, container: Manifest, volumes: list[str], grace_s: int, further_volume: dict[str, Value]
) -> dict[str, Value]:
    directories = " ".join(f"{mount}/own" for mount in map(_mount_path, volumes))
    made: list[Value] = [
        {"name": "secret", "secret": {"secretName": settings.secret_name, "defaultMode": _SECRET_MODE}},
        {"name": "key", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "scratch", "emptyDir": {}},
    ]
    own: Manifest = {
        "name": "own-directories",
        "image": settings.image,
        "command": ["sh", "-c", _MAKE_OWN.format(directories=directories)],
        "securityContext": _confined(),
        "resources": {
            "requests": {"cpu": "10m", "memory": "32Mi"},
            "limits": {"cpu": "1", "memory": "32Mi"},
        },
        "volumeMounts": [{"name": "secret", "mountPath": "/secret", "readOnly": True}, *map(_mount, volumes)],
    }
    pod: dict[str, Value] = {
        "automountServiceAccountToken": False,  # tasks have no business with the cluster's API
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": grace_s,
    }
    if settings.pull_secret:
        pod["imagePullSecrets"] = [{"name": settings.pull_secret}]
    return {
        **pod,
        "initContainers": [own],
        "containers": [container],
        "volumes": [*made, further_volume] if further_volume else made,
    }


def _container(settings: Settings, name: str, command: list[Value], volumes: list[str]) -> Manifest:
    return {
        "name": name,
        "image": settings.image,
        "command": command,
        "env": [
            {"name": "LOOM_KEY_FILE", "value": _KEY_FILE},
            {"name": "TMPDIR", "value": _TEMPORARY},
            {"name": "HOME", "value": _TEMPORARY},
        ],
        "securityContext": _confined(),
        "volumeMounts": [_mount(volume) for volume in volumes],
    }


def _confined() -> dict[str, Value]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _mount(volume: str) -> dict[str, Value]:
    return {"name": volume, "mountPath": _mount_path(volume)}


def _mount_path(volume: str) -> str:
    return "/dev/shm" if volume == "store" else f"/{volume}"


def _probe(command: str, period_s: int, failures: int) -> dict[str, Value]:
    return {
        "exec": {"command": ["sh", "-c", command]},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
