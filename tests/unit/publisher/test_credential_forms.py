"""A pull credential as manifests, ACI and Kubernetes take it."""

from __future__ import annotations

import base64
import json

import pytest

from edge_contracts.manifest import RegistryCredential
from edge_contracts.redact import Secret
from publisher.credentials.forms import (
    aci_document,
    docker_config,
    kubernetes_secret,
    manifest_document,
    secret_name,
)
from publisher.credentials.source import PullCredential

CREDENTIAL = PullCredential("registry.example:5000", "reader", Secret("pä:ss word"), "test")


def test_manifest_form_is_read_back_by_the_manifests_own_parser() -> None:
    [(identifier, entry)] = manifest_document(CREDENTIAL)["registryCredentials"].items()
    read = RegistryCredential.parse(identifier, entry, where="registryCredentials")
    assert (read.id, read.address) == ("registry-example-5000", "registry.example:5000")
    assert (read.username, read.password) == (CREDENTIAL.username, CREDENTIAL.password)


def test_aci_form_has_the_three_members_of_an_image_registry_credential() -> None:
    assert aci_document(CREDENTIAL) == {
        "server": "registry.example:5000",
        "username": "reader",
        "password": "pä:ss word",
    }


def test_pull_secret_holds_a_docker_configuration_in_base64() -> None:
    secret = kubernetes_secret(CREDENTIAL, namespace="scoring")
    assert (secret["type"], secret["kind"]) == ("kubernetes.io/dockerconfigjson", "Secret")
    assert secret["metadata"]["name"] == "registry-example-5000-pull"
    assert secret["metadata"]["namespace"] == "scoring"
    config = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"], validate=True))
    assert config == docker_config(CREDENTIAL)
    login = config["auths"]["registry.example:5000"]
    assert base64.b64decode(login["auth"]).decode() == "reader:pä:ss word"


def test_docker_hub_is_called_as_each_of_them_calls_it() -> None:
    hub = PullCredential("docker.io", "me", Secret("mine"), "test")
    [entry] = manifest_document(hub)["registryCredentials"].values()
    assert entry["address"] == "docker.io"
    assert aci_document(hub)["server"] == "index.docker.io"
    assert list(docker_config(hub)["auths"]) == ["https://index.docker.io/v1/"]


@pytest.mark.parametrize("registry", ["A.Example", "127.0.0.1:5050", "[::1]:5000", "x" * 300])
def test_name_of_a_secret_is_a_dns_name(registry: str) -> None:
    name = secret_name(registry)
    assert len(name) <= 253
    assert name == name.lower()
    assert all(char.isalnum() or char == "-" for char in name)
    assert name[0].isalnum()


def test_no_form_of_a_credential_prints_its_password() -> None:
    assert "pä:ss word" not in repr(CREDENTIAL) + str(CREDENTIAL)
