"""Images between workspaces and Debian's registry: places, tags, SBOMs, signatures; skopeo as the independent witness."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from publisher_workspaces import make_runtime_wheels, make_workspace, resolved_locks, seed_locks, write_score
from registry_servers import PASSWORD, USER, RunningRegistry, debian_registry, embedded_registry
from registry_tokens import TokenRegistry, token_registry

from edge_containers.attachments import attach, attachments
from edge_containers.errors import (
    RegistryAuthError,
    RegistryFullError,
    RegistryNotFoundError,
    RegistryUnavailableError,
)
from edge_containers.image_archive import manifests_of
from edge_containers.image_model import OCI_CONFIG, OCI_LAYER_TAR, OCI_MANIFEST, ImageManifest, Platform
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageRef
from edge_contracts.redact import Secret
from publisher import Model
from publisher.build_request import BuildRequest
from publisher.environments import Environment
from publisher.image_transfer import Access, TagMovedError, TagState
from publisher.images import ContainerImage, Image
from publisher.sbom import CYCLONEDX, NoSbomError, make_sbom, read_lock
from publisher.workspace import Workspace

PLATFORMS = (Platform.parse("linux/amd64"), Platform.parse("linux/arm64"))
CREDENTIALS = BasicCredentials(USER, Secret(PASSWORD))
COSIGN_SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGSTORE_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@pytest.fixture(scope="module")
def locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolved_locks(tmp_path_factory.mktemp("locks"))


@pytest.fixture
def workspace(locks: Path, tmp_path: Path) -> Workspace:
    made = make_workspace(tmp_path / "w", make_runtime_wheels(tmp_path / "wheels"))
    seed_locks(made, locks)
    return made


@pytest.fixture
def elsewhere(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "elsewhere", tmp_path / "wheels")


@pytest.fixture(params=["docker-registry", "embedded"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningRegistry]:
    folder = tmp_path / "registry"
    folder.mkdir()
    start = {"docker-registry": debian_registry, "embedded": embedded_registry}[request.param]
    with start(folder) as running:
        yield running


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[RunningRegistry]:
    (tmp_path / "registry").mkdir()
    with debian_registry(tmp_path / "registry") as running:
        yield running


def build(workspace: Workspace, content: bytes = b"one") -> Image:
    (workspace.root / "m.pkl").write_bytes(content)
    model = Model.register(workspace, workspace.root / "m.pkl", "digits")
    script = write_score(workspace.root / "src")
    request = BuildRequest("digits", (model,), script, Environment((), "3.11"), platforms=PLATFORMS)
    return ContainerImage.from_request(workspace, request)


def pull(workspace: Workspace, reference: object, **options: str) -> Image:
    return Image.pull(workspace, str(reference), credentials=CREDENTIALS, **options)


def client(registry: RunningRegistry) -> RegistryClient:
    return RegistryClient(registry.address, credentials=CREDENTIALS)


# Pull.


def test_a_pulled_image_is_the_pushed_one_and_is_listed_once(
    workspace: Workspace, elsewhere: Workspace, registry: RunningRegistry
) -> None:
    image = build(workspace)
    pushed = image.push(registry.address, repository="team/digits", credentials=CREDENTIALS)
    pulled = pull(elsewhere, pushed.tagged)
    assert (pulled.id, pulled.digest, pulled.platforms, pulled.size) == (
        "digits:1",
        image.digest,
        image.platforms,
        image.size,
    )
    assert [each.role for each in pulled.layers] == [each.role for each in image.layers]
    assert pull(elsewhere, pushed.location).id == "digits:1"
    assert pull(elsewhere, pushed.location, name="other").id == "other:1"
    assert [each.id for each in Image.list(elsewhere)] == ["digits:1", "other:1"]
    assert pulled.export(elsewhere.root / "digits.tar") > 0


def test_what_is_not_there_leaves_nothing_listed(elsewhere: Workspace, debian: RunningRegistry) -> None:
    with pytest.raises(RegistryNotFoundError, match="has no manifest 9 in repository 'digits'"):
        pull(elsewhere, f"{debian.address}/digits:9")
    with pytest.raises(RegistryAuthError, match="asks for credentials, and none were given"):
        Image.pull(elsewhere, f"{debian.address}/digits:9")
    assert Image.list(elsewhere) == []


def test_a_deleted_image_takes_its_attachments_along(workspace: Workspace, debian: RunningRegistry) -> None:
    first, second = build(workspace), build(workspace, b"two")
    for image in (first, second):
        image.push(debian.address, credentials=CREDENTIALS)
    first.delete()
    names = set(workspace.store.tags())
    kept = {f"sha256-{each.digest.hex}" for each in manifests_of(workspace.store, second.descriptor)}
    assert names == {"digits:2"} | kept
    second.delete()
    assert workspace.store.tags() == {}


# Places and tags.


def test_one_image_goes_to_several_places_and_blobs_are_mounted(
    workspace: Workspace, debian: RunningRegistry
) -> None:
    image = build(workspace)
    first = image.push(debian.address, repository="team/one", tag="a", credentials=CREDENTIALS)
    second = image.push(debian.address, repository="team/two", tag="b", credentials=CREDENTIALS)
    assert first.blobs_sent > 0
    assert second.blobs_sent == 0, "mounted from team/one"
    states = {
        str(each.reference).partition("/")[2]: each.state
        for each in image.remote_tags(lambda _: Access(CREDENTIALS))
    }
    assert states == {"team/one:a": TagState.SAME, "team/two:b": TagState.SAME}


def test_a_tag_moved_by_someone_else_is_noticed_and_not_moved_back_unasked(
    workspace: Workspace, elsewhere: Workspace, locks: Path, debian: RunningRegistry
) -> None:
    mine = build(workspace)
    mine.push(debian.address, tag="live", credentials=CREDENTIALS)
    newer = build(workspace, b"two")
    newer.push(debian.address, tag="live", credentials=CREDENTIALS)  # one's own tag moves
    seed_locks(elsewhere, locks)
    theirs = build(elsewhere, b"theirs")
    with pytest.raises(TagMovedError, match=rf"digits:live .* expected nothing, found {newer.digest}"):
        theirs.push(debian.address, tag="live", credentials=CREDENTIALS)
    theirs.push(debian.address, tag="live", force=True, credentials=CREDENTIALS)
    (tag,) = newer.remote_tags(lambda _: Access(CREDENTIALS))
    assert (tag.state, tag.found) == (TagState.MOVED, theirs.digest)
    with pytest.raises(TagMovedError, match=str(newer.digest)) as caught:
        mine.push(debian.address, tag="live", credentials=CREDENTIALS)
    assert caught.value.next_command == f"edgewright image pull {debian.address}/digits:live"
    with client(debian) as there:
        now = there.head_manifest("digits", "live")
    assert now is not None and now.digest == theirs.digest


# SBOM.


def test_the_sbom_is_the_lock_and_valid_and_the_same_each_time(workspace: Workspace) -> None:
    image = build(workspace)
    for manifest in manifests_of(workspace.store, image.descriptor):
        lock = read_lock(workspace.store, manifest)
        sbom = image.sbom(str(manifest.platform))
        assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(sbom.decode()) is None
        document = json.loads(sbom)
        named = {f"{each['name']}=={each['version']}" for each in document["components"]}
        assert named == {line.split()[0] for line in lock.splitlines() if "==" in line}
        assert all(each["hashes"] for each in document["components"])
        assert {each["content"] for part in document["components"] for each in part["hashes"]} == {
            word.removeprefix("--hash=sha256:") for word in lock.split() if word.startswith("--hash")
        }
        assert sbom == make_sbom(lock, manifest.platform or PLATFORMS[0])


def test_a_new_model_sends_no_new_sbom(workspace: Workspace, debian: RunningRegistry) -> None:
    build(workspace).push(debian.address, credentials=CREDENTIALS)
    image = build(workspace, b"two" * 1000)
    pushed = image.push(debian.address, credentials=CREDENTIALS)
    model = next(layer.size for layer in image.layers if layer.role == "model")
    assert pushed.bytes_sent <= model + 65536
    sboms = {image.sbom(str(each)) for each in PLATFORMS}
    assert pushed.bytes_sent < model + sum(map(len, sboms)) + 65536


def test_an_image_without_a_lock_has_no_sbom(elsewhere: Workspace, debian: RunningRegistry) -> None:
    store = ContentStore(elsewhere.root / "foreign")
    layer = store.put_bytes(b"\0" * 1024).describe(OCI_LAYER_TAR)
    config = store.put_bytes(
        b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}'
        % (b"0" * 64)
    ).describe(OCI_CONFIG)
    manifest = store.put_bytes(ImageManifest(config, (layer,)).to_bytes()).describe(OCI_MANIFEST)
    with client(debian) as there:
        there.push_image(store, manifest, "foreign", "1")
    image = pull(elsewhere, f"{debian.address}/foreign:1")
    assert (image.digest, image.platforms) == (manifest.digest, PLATFORMS[:1])
    with pytest.raises(NoSbomError, match="no SBOM attached and no lock"):
        image.sbom()
    image.push(debian.address, repository="again", credentials=CREDENTIALS)


# Signatures.


def test_signatures_of_both_kinds_travel_and_stay_valid(
    workspace: Workspace, elsewhere: Workspace, registry: RunningRegistry
) -> None:
    image = build(workspace)
    pushed = image.push(registry.address, credentials=CREDENTIALS)
    with client(registry) as there:
        sign_as_cosign_does(there, workspace.root / "signer", "digits", image)
    bundle = attach(workspace.store, image.descriptor, SIGSTORE_BUNDLE, b'{"bundle":1}')
    sbom = attachments(workspace.store, manifests_of(workspace.store, image.descriptor)[0].digest, CYCLONEDX)[
        0
    ]
    over_sbom = attach(workspace.store, sbom, SIGSTORE_BUNDLE, b'{"bundle":"of the SBOM"}')
    image.push(registry.address, credentials=CREDENTIALS)

    pulled = pull(elsewhere, pushed.location)
    tag = f"sha256-{image.digest.hex}.sig"
    signature = elsewhere.store.resolve(tag)
    assert signature is not None
    assert [each.digest for each in attachments(elsewhere.store, image.digest)] == [bundle.digest]
    assert [each.digest for each in attachments(elsewhere.store, sbom.digest)] == [over_sbom.digest]
    signed = ImageManifest.from_bytes(elsewhere.store.read_bytes(signature.digest)).layers[0]
    payload = json.loads(elsewhere.store.read_bytes(signed.digest))
    assert payload["critical"]["image"]["docker-manifest-digest"] == str(pulled.digest)

    pulled.push(registry.address, repository="mirror/digits", credentials=CREDENTIALS)
    with client(registry) as there:
        copied = there.head_manifest("mirror/digits", tag)
        assert copied is not None and copied.digest == signature.digest
        _, listed = there.get_manifest("mirror/digits", f"sha256-{image.digest.hex}")
    assert [each["digest"] for each in json.loads(listed)["manifests"]] == [str(bundle.digest)]


def test_an_attachment_that_a_broken_push_left_unlisted_is_listed_by_the_next(
    workspace: Workspace, debian: RunningRegistry, tmp_path: Path
) -> None:
    image = build(workspace)
    image.sbom()
    with client(debian) as there:
        there.push_image(workspace.store, image.descriptor, "digits")
        for manifest in manifests_of(workspace.store, image.descriptor):
            for each in attachments(workspace.store, manifest.digest):
                there.push_image(workspace.store, each, "digits")
    pushed = image.push(debian.address, credentials=CREDENTIALS)
    pulled = pull(make_workspace(tmp_path / "there", tmp_path), pushed.location)
    for manifest in manifests_of(workspace.store, image.descriptor):
        assert len(attachments(pulled.workspace.store, manifest.digest, CYCLONEDX)) == 1


def sign_as_cosign_does(client: RegistryClient, folder: Path, repository: str, image: Image) -> None:
    """Cosign's signature as its specification has it: a manifest under `sha256-HEX.sig` with the payload as a layer."""
    store = ContentStore(folder)
    payload = {
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": str(image.digest)},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    layer = store.put_bytes(json.dumps(payload).encode()).describe(
        COSIGN_SIGNATURE, {"dev.cosignproject.cosign/signature": "MEUCIQ=="}
    )
    config = store.put_bytes(
        b'{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
    )
    manifest = ImageManifest(config.describe(OCI_CONFIG), (layer,))
    descriptor = store.put_bytes(manifest.to_bytes()).describe(OCI_MANIFEST)
    client.push_image(store, descriptor, repository, f"sha256-{image.digest.hex}.sig")


# Witnesses and registries.


def test_skopeo_copies_what_was_pushed_with_its_digest(
    workspace: Workspace, debian: RunningRegistry, tmp_path: Path
) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed: apt-get install skopeo")
    image = build(workspace)
    image.push(debian.address, credentials=CREDENTIALS)
    common = ["--insecure-policy"], [f"--src-creds={USER}:{PASSWORD}", "--src-tls-verify=false"]
    source = f"docker://{debian.address}/digits:1"
    target = f"dir:{tmp_path / 'copy'}"
    subprocess.run(
        [skopeo, *common[0], "copy", "--all", "--preserve-digests", *common[1], source, target],
        check=True,
        capture_output=True,
        timeout=60,
    )
    copied = (tmp_path / "copy" / "manifest.json").read_bytes()
    assert copied == workspace.store.read_bytes(image.digest)


def test_with_tokens_a_user_may_do_what_the_server_says(workspace: Workspace, tmp_path: Path) -> None:
    users = {"ci": ("push-secret", {"pull", "push"}), "device": ("pull-secret", {"pull"})}
    image = build(workspace)
    with token_registry(tmp_path / "tokens", users) as registry:
        ci = BasicCredentials("ci", Secret("push-secret"))
        pushed = image.push(registry.address, repository="team/digits", credentials=ci)
        device = BasicCredentials("device", Secret("pull-secret"))
        with pytest.raises(RegistryAuthError, match="refused the credentials of user 'device'") as caught:
            image.push(registry.address, repository="team/other", credentials=device)
        assert "pull-secret" not in str(caught.value)
        other = make_workspace(tmp_path / "other", tmp_path)
        assert Image.pull(other, str(pushed.location), credentials=device).digest == image.digest
        assert_identity_tokens_work(registry, pushed.location, tmp_path)


def assert_identity_tokens_work(registry: TokenRegistry, location: ImageRef, tmp_path: Path) -> None:
    """Docker's logins hold a refresh token under the user `<token>` for some registries."""
    login = BasicCredentials("<token>", Secret("pull-secret"))
    with RegistryClient(registry.address, credentials=login) as there:
        store = ContentStore(tmp_path / "by-identity-token")
        assert there.pull_whole(location.repository, location.digest or "", store).digest == location.digest


def test_a_full_registry_says_so_and_the_next_push_goes_on(workspace: Workspace, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    folder = tmp_path / "registry"
    (folder / "data").mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "disk", str(folder / "data")]
    if subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    image = build(workspace, os.urandom(4 << 20))
    try:
        with debian_registry(folder) as registry:
            with pytest.raises(RegistryFullError, match=r"has no room left for upload .*make room") as caught:
                image.push(registry.address, credentials=CREDENTIALS)
            assert not caught.value.temporary
            assert Image(workspace, id=image.id).image_location is None
            subprocess.run(["mount", "-o", "remount,size=32m", str(folder / "data")], check=True, timeout=10)
            assert image.push(registry.address, credentials=CREDENTIALS).location.digest == image.digest
    finally:
        subprocess.run(["umount", "--lazy", str(folder / "data")], timeout=10, check=True)


def test_a_registry_that_is_not_there_is_named_after_four_tries(workspace: Workspace) -> None:
    image = build(workspace)
    access = Access(sleep=lambda _: None)
    with (
        access.client(workspace, "127.0.0.1:1") as nobody,
        pytest.raises(RegistryUnavailableError, match="127"),
    ):
        nobody.push_image(workspace.store, image.descriptor, "digits")
