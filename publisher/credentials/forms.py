"""A pull credential as those who pull take it: a deployment manifest, ACI, Kubernetes. Values in, documents out.

The documents hold the password: they are for files of mode 0600 and for requests, and pass `redact_document` before
they are printed.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from edge_contracts.manifest import RegistryCredential
from edge_contracts.redact import Secret

if TYPE_CHECKING:
    from publisher.credentials.source import PullCredential

# What Docker's and Kubernetes' configuration call Docker Hub; ACI takes the host alone.
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_SERVER = "index.docker.io"
_DOCKER_HUB = "docker.io"


def manifest_entry(credential: PullCredential) -> RegistryCredential:
    """The member of a manifest's `registryCredentials`."""
    registry = credential.registry
    return RegistryCredential(credential_id(registry), registry, credential.username, credential.password)


def credential_id(registry: str) -> str:
    """An id that a twin's key may be: no dots, dollars, hashes or spaces."""
    return "".join(char if char.isalnum() else "-" for char in registry).strip("-")


def manifest_document(credential: PullCredential) -> dict[str, Any]:
    """`runtime.settings.registryCredentials` of `$edgeAgent`."""
    entry = manifest_entry(credential)
    return {"registryCredentials": {entry.id: entry.dump()}}


def aci_document(credential: PullCredential) -> dict[str, Any]:
    """An item of a container group's `imageRegistryCredentials` (also the arguments of the SDK's class)."""
    server = _DOCKER_HUB_SERVER if credential.registry == _DOCKER_HUB else credential.registry
    return {
        "server": server,
        "username": credential.username,
        "password": credential.password.reveal(),
    }


def docker_config(credential: PullCredential) -> dict[str, Any]:
    """Docker's `config.json` with this one login."""
    pair = f"{credential.username}:{credential.password.reveal()}".encode()
    key = _DOCKER_HUB_KEY if credential.registry == _DOCKER_HUB else credential.registry
    login = {
        "username": credential.username,
        "password": credential.password.reveal(),
        "auth": base64.b64encode(pair).decode(),
    }
    return {"auths": {key: login}}


def kubernetes_secret(
    credential: PullCredential, *, name: str | None = None, namespace: str | None = None
) -> dict[str, Any]:
    """A pull secret, type `kubernetes.io/dockerconfigjson`; named after the registry by default."""
    config = Secret(json.dumps(docker_config(credential), sort_keys=True))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name or secret_name(credential.registry),
            **({"namespace": namespace} if namespace else {}),
            "labels": {"app.kubernetes.io/managed-by": "edgewright"},
        },
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(config.reveal().encode()).decode()},
    }


def secret_name(registry: str) -> str:
    """A name that Kubernetes takes (RFC 1123): `registry-example-com-pull`."""
    return re.sub(r"[^a-z0-9]+", "-", registry.lower()).strip("-")[:240] + "-pull"
