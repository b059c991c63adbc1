"""Registry credentials: one for each registry, made by the embedded one, passed through for any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_harness import HubProcess

from edge_containers.errors import RegistryAuthError
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.store import ContentStore
from edge_contracts.errors import EdgewrightError
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.manifest import RegistryCredential
from edge_contracts.redact import Secret
from publisher.credentials import (
    EmbeddedCredentials,
    GivenCredentials,
    PullCredential,
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

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        self.asked.append((registry, repositories))
        if registry != self.registry:
            return None
        return PullCredential(registry, "user", Secret("word"), "maker")


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


def test_embedded_registry_makes_pull_only_credentials_for_a_deployments_repositories(
    hub: HubProcess, endpoint: HubEndpoint
) -> None:
    source = EmbeddedCredentials(endpoint, life_s=60)
    made = source.pull_credential(hub.registry_address, ("team/digits", "faces"))
    assert made is not None
    assert (made.repositories, made.warning) == (("team/digits", "faces"), None)
    assert made.expires is not None
    assert made.registry == hub.registry_address
    _, listed = hub.request("GET", "/edgewright/registry/credentials")
    [mine] = [each for each in listed if each["username"] == made.username]
    assert (mine["repositories"], mine["actions"]) == (["team/digits", "faces"], ["pull"])
    assert made.password.reveal() not in str(listed) + repr(made)


def test_each_deployment_gets_its_own(hub: HubProcess, endpoint: HubEndpoint) -> None:
    source = EmbeddedCredentials(endpoint)
    first, second = (source.pull_credential(hub.registry_address, ("digits",)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.username != second.username


def test_one_credential_pulls_each_of_its_repositories_and_no_other(
    hub: HubProcess, endpoint: HubEndpoint, tmp_path: Path
) -> None:
    source, address = EmbeddedCredentials(endpoint), hub.registry_address
    store = ContentStore(tmp_path)
    blob = store.put_bytes(b"blob").describe("application/octet-stream")
    with RegistryClient(address, credentials=source.push_credentials(address)) as client:
        for repository in ("one", "two", "three"):
            client.push_blob(repository, blob, store)
    made = source.pull_credential(address, ("one", "two"))
    assert made is not None
    with RegistryClient(address, credentials=BasicCredentials(made.username, made.password)) as client:
        assert [client.head_blob(name, blob.digest) for name in ("one", "two")] == [4, 4]
        with pytest.raises(RegistryAuthError):
            client.head_blob("three", blob.digest)
        with pytest.raises(RegistryAuthError):
            client.push_blob("one", store.put_bytes(b"new").describe("text/plain"), store)


def test_revoked_credential_is_listed_no_more_and_gets_no_token(
    hub: HubProcess, endpoint: HubEndpoint
) -> None:
    source, address = EmbeddedCredentials(endpoint), hub.registry_address
    made = source.pull_credential(address, ("digits",))
    assert made is not None
    [mine] = [user for user in source.users(address) if user.username == made.username]
    assert (mine.repositories, mine.expires) == (("digits",), made.expires)
    source.revoke(address, made.username)
    assert made.username not in {user.username for user in source.users(address)}
    with (
        RegistryClient(address, credentials=BasicCredentials(made.username, made.password)) as client,
        pytest.raises(RegistryAuthError),
    ):
        client.head_blob("digits", DIGEST)
    with pytest.raises(EdgewrightError, match="no registry credential"):
        source.revoke(address, made.username)


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
