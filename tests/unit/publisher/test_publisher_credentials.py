"""Registry credentials: one for each registry, made by the embedded one, passed through for any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_harness import HubProcess

from edge_containers.registry_client import RegistryClient
from edge_containers.store import ContentStore
from edge_contracts.errors import EdgewrightError
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.manifest import RegistryCredential
from edge_contracts.redact import Secret
from publisher.credentials import (
    EmbeddedCredentials,
    GivenCredentials,
    NoCredentialsError,
    credential_id,
    pull_credentials,
)
from publisher.embedded_hub import HubAddress, HubEndpoint, NoHubError

DIGEST = ImageDigest.of(b"image")


def image(name: str) -> ImageRef:
    return ImageRef.parse(f"{name}@{DIGEST}")


class Maker:
    """A source for one registry that remembers what it was asked for."""

    def __init__(self, registry: str) -> None:
        self.registry = registry
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> RegistryCredential | None:
        self.asked.append((registry, repositories))
        if registry != self.registry:
            return None
        return RegistryCredential(credential_id(registry), registry, "user", Secret("word"))


def test_one_credential_for_each_registry_covers_its_repositories() -> None:
    source = Maker("one.example")
    found = pull_credentials(
        [image("one.example/a"), image("two.example/x"), image("one.example/b"), image("one.example/a")],
        [source],
    )
    assert [credential.address for credential in found] == ["one.example"]
    assert source.asked == [("one.example", ("a", "b")), ("two.example", ("x",))]


def test_first_source_that_knows_a_registry_is_taken() -> None:
    given = GivenCredentials("one.example", "me", Secret("mine"))
    maker = Maker("one.example")
    assert pull_credentials([image("one.example/a")], [given, maker])[0].username == "me"
    assert maker.asked == []


def test_image_without_a_registry_needs_no_credentials() -> None:
    given = GivenCredentials("docker.io", "me", Secret("mine"))
    assert pull_credentials([image("digits")], [given]) == ()
    assert pull_credentials([image("team/digits")], [given])[0].address == "docker.io"


def test_given_credentials_are_passed_on_for_all_repositories() -> None:
    given = GivenCredentials("Registry.Example:5000", "me", Secret("mine"))
    images = [image("registry.example:5000/a"), image("registry.example:5000/b")]
    [found] = pull_credentials(images, [given])
    assert found == RegistryCredential("registry-example-5000", "registry.example:5000", "me", Secret("mine"))
    assert "mine" not in repr(given) + repr(found)


@pytest.mark.parametrize(
    ("registry", "identifier"),
    [("127.0.0.1:5050", "127-0-0-1-5050"), ("a.example", "a-example"), ("$upstream:443", "upstream-443")],
)
def test_id_of_a_credential_is_a_key_that_twins_take(registry: str, identifier: str) -> None:
    assert credential_id(registry) == identifier


# The embedded registry.


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with HubProcess(tmp_path_factory.mktemp("hub") / "data") as process:
        yield process


@pytest.fixture
def endpoint(hub: HubProcess) -> HubEndpoint:
    address = HubAddress(hub.host, 8883, hub.https_port, hub.ready["registry"])
    return HubEndpoint(Secret(hub.connection_string), hub.ca_file, address)


def test_embedded_registry_makes_pull_only_credentials_for_one_repository(
    hub: HubProcess, endpoint: HubEndpoint
) -> None:
    source = EmbeddedCredentials(endpoint, life_s=60)
    made = source.pull_credential(hub.registry_address, ("team/digits",))
    assert made is not None
    assert made.address == hub.registry_address
    _, listed = hub.request("GET", "/edgewright/registry/credentials")
    [mine] = [each for each in listed if each["username"] == made.username]
    assert (mine["repository"], mine["actions"]) == ("team/digits", ["pull"])
    assert made.password.reveal() not in str(listed) + repr(made)


def test_each_deployment_gets_its_own(hub: HubProcess, endpoint: HubEndpoint) -> None:
    source = EmbeddedCredentials(endpoint)
    first, second = (source.pull_credential(hub.registry_address, ("digits",)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.username != second.username


def test_several_repositories_of_the_embedded_registry_are_refused_with_a_way_out(
    hub: HubProcess, endpoint: HubEndpoint
) -> None:
    before = hub.request("GET", "/edgewright/registry/credentials")
    with pytest.raises(NoCredentialsError) as caught:
        EmbeddedCredentials(endpoint).pull_credential(hub.registry_address, ("digits", "faces"))
    for part in (hub.registry_address, "'digits'", "'faces'", "--registry-username"):
        assert part in caught.value.message
    assert caught.value.next_command == "edgewright image push IMAGE --repository digits"
    assert hub.request("GET", "/edgewright/registry/credentials") == before


def test_embedded_hub_knows_no_other_registry(endpoint: HubEndpoint) -> None:
    source = EmbeddedCredentials(endpoint)
    assert source.pull_credential("other.example", ("digits",)) is None
    assert source.push_credentials("other.example") is None


def test_pushing_needs_no_kept_password(hub: HubProcess, endpoint: HubEndpoint, tmp_path: Path) -> None:
    pusher = EmbeddedCredentials(endpoint).push_credentials(hub.registry_address.upper())
    assert pusher is not None
    store = ContentStore(tmp_path)
    with RegistryClient(hub.registry_address, credentials=pusher) as client:
        client.push_blob("digits", store.put_bytes(b"blob").describe("application/octet-stream"), store)


def test_bad_repository_is_refused_in_the_hubs_words(hub: HubProcess, endpoint: HubEndpoint) -> None:
    with pytest.raises(EdgewrightError, match="repository must be a repository name") as caught:
        EmbeddedCredentials(endpoint).pull_credential(hub.registry_address, ("Digits",))
    assert "Digits" in caught.value.message


def test_another_hub_makes_none(endpoint: HubEndpoint) -> None:
    elsewhere = replace(endpoint, address=None)
    assert EmbeddedCredentials(elsewhere).pull_credential("any.example", ("digits",)) is None
    with pytest.raises(NoHubError, match="the environment names another one"):
        elsewhere.extras()
