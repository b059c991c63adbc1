"""`edgewright bundle create`: which images go in, from where, and what is left when it fails."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import runtime_images
from publisher_workspaces import make_runtime_wheels, make_workspace
from registry_double import RegistryDouble, User

from edge_containers.bundle import read_bundle
from edge_containers.errors import PlatformNotFoundError, RegistryError
from edge_containers.image_model import OCI_INDEX, Descriptor, Platform
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.store import ContentStore
from edge_contracts.errors import PublishError
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import DeploymentManifest, ModuleSettings, RegistryCredential
from edge_contracts.redact import Secret
from publisher.bundles import create_bundle
from publisher.errors import UsageError
from publisher.workspace import Workspace

PLATFORM = runtime_images.PLATFORM


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "w", make_runtime_wheels(tmp_path / "wheels"))


@pytest.fixture
def registry() -> Iterator[RegistryDouble]:
    with RegistryDouble(auth="basic", users={"reader": User("pass-word")}) as running:
        yield running


@pytest.fixture
def remote(registry: RegistryDouble, tmp_path: Path) -> ImageRef:
    """An image that only the registry has."""
    store = ContentStore(tmp_path / "elsewhere")
    digest = runtime_images.put_image(store, "1")
    basic = BasicCredentials("reader", Secret("pass-word"))
    with RegistryClient(registry.address, credentials=basic) as client:
        client.push_image(store, Descriptor(OCI_INDEX, digest, store.size(digest)), "digits", None)
    return ImageRef(registry.address, "digits", None, digest)


def manifest_of(image: ImageRef, password: str = "pass-word") -> DeploymentManifest:
    credential = RegistryCredential("r", str(image.registry), "reader", Secret(password))
    credentials = [credential] if image.registry else []
    return DeploymentManifest.assemble([ModuleSettings("scorer", image)], {}, credentials)


def test_image_is_pulled_with_the_manifests_own_credentials(
    workspace: Workspace, remote: ImageRef, registry: RegistryDouble, tmp_path: Path
) -> None:
    made = create_bundle(workspace, manifest_of(remote), tmp_path / "b.tar", PLATFORM)
    data = made.path.read_bytes()
    assert (made.images, made.size_bytes) == ((str(remote),), len(data))
    assert b"pass-word" not in data
    found = read_bundle(io.BytesIO(data), ContentStore(tmp_path / "device"), PLATFORM, where="b.tar")
    assert found.images == (remote,)
    asked = len(registry.requests)
    create_bundle(workspace, manifest_of(remote), tmp_path / "b.tar", PLATFORM)
    assert len(registry.requests) == asked, "what is here is not asked for again"
    assert made.path.read_bytes() == data


def test_refused_credentials_leave_the_old_file(
    workspace: Workspace, remote: ImageRef, tmp_path: Path
) -> None:
    (tmp_path / "b.tar").write_text("old")
    with pytest.raises(RegistryError):
        create_bundle(workspace, manifest_of(remote, "wrong"), tmp_path / "b.tar", PLATFORM)
    assert (tmp_path / "b.tar").read_text() == "old"
    assert not list(tmp_path.glob(".b.tar*"))


def test_platform_is_that_of_the_images_or_must_be_said(
    workspace: Workspace, remote: ImageRef, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not in this workspace"):
        create_bundle(workspace, manifest_of(remote), tmp_path / "b.tar")
    local = ImageRef(None, "digits", None, runtime_images.put_image(workspace.store, "1"))
    assert create_bundle(workspace, manifest_of(local), tmp_path / "b.tar").platform == PLATFORM
    with pytest.raises(UsageError, match="one that all images are built for"):
        create_bundle(workspace, DeploymentManifest.assemble((), {}), tmp_path / "c.tar")
    with pytest.raises(PlatformNotFoundError, match="riscv64"):
        create_bundle(workspace, manifest_of(local), tmp_path / "c.tar", Platform("linux", "riscv64"))
    assert not (tmp_path / "c.tar").exists()


def test_file_that_cannot_be_written_is_named(workspace: Workspace, tmp_path: Path) -> None:
    local = ImageRef(None, "digits", None, runtime_images.put_image(workspace.store, "1"))
    with pytest.raises(PublishError, match="No such file"):
        create_bundle(workspace, manifest_of(local), tmp_path / "none" / "b.tar")
