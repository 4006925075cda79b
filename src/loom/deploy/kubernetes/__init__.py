"""Server and workers on Kubernetes: `render` writes the manifests that `kubectl apply` takes.

Nothing here talks to a cluster. The manifests are checked against the schemas of the Kubernetes API, and what they run
in namespaces of this machine; nobody has run them on a real cluster yet.
"""

from __future__ import annotations

import shlex

from loom import __version__
from loom.deploy.kubernetes.manifests import manifests
from loom.deploy.kubernetes.settings import SERVICES, Settings
from loom.deploy.kubernetes.yaml import to_yaml

__all__ = ["SERVICES", "Settings", "render", "secret_command"]


def secret_command(settings: Settings, key_file: str) -> str:
    """What makes the secret from a key file, on one line."""
    if not key_file.isprintable():
        key_file = "KEY-FILE"
    words = ["kubectl", "create", "secret", "generic", settings.secret_name, f"--from-file=key={key_file}"]
    if settings.namespace:
        words.append(f"--namespace={settings.namespace}")
    return shlex.join(words)


def render(settings: Settings, key_file: str, key: str = "") -> str:
    """YAML of all documents. Where `key` (the content of a key file) is given it is in there, as a secret; else a
    comment says how to make that secret from `key_file`.
    """
    if key:
        about = ["The key is in this file: keep it as you keep the key."]
    else:
        about = ["It needs this secret, once, before or after:", f"  {secret_command(settings, key_file)}"]
    head = [
        f"Loom {__version__}: a server and its workers. Not tried on a real cluster.",
        *about,
        "Then: kubectl apply -f THIS-FILE",
    ]
    comment = "".join(f"# {line}\n" for line in head)
    return comment + "".join(f"---\n{to_yaml(one)}" for one in manifests(settings, key))
