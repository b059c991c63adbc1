"""Azure's credentials end to end: `edgewright` as typed, Microsoft's clients, and a real registry that takes the passwords.

Debian's `docker-registry` is the registry, its users are those of the ARM emulator.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from arm_emulator import GROUP, SUBSCRIPTION, ArmEmulator
from arm_identity import managed_identity
from arm_registries import ContainerRegistries, EmulatedRegistry
from arm_registry_login import azure_registry
from registry_images import put_image
from registry_tokens import TokenRegistry
from typer.testing import CliRunner, Result

from edge_containers.errors import RegistryAuthError
from edge_containers.image_model import Platform
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import DeploymentManifest
from edge_contracts.redact import Secret
from publisher.cli.main import app
from publisher.credentials import credentials_for

AMD64 = Platform("linux", "amd64")

Run = Callable[..., Result]


@pytest.fixture
def azure() -> EmulatedRegistry:
    return EmulatedRegistry("mine", GROUP, "", admin_enabled=True)


@pytest.fixture
def registry(tmp_path: Path, azure: EmulatedRegistry) -> Iterator[TokenRegistry]:
    with azure_registry(tmp_path / "registry", azure) as running:
        yield running


@pytest.fixture
def arm(tmp_path: Path, azure: EmulatedRegistry, registry: TokenRegistry) -> Iterator[ArmEmulator]:
    with ArmEmulator(tmp_path, [ContainerRegistries(azure)]) as emulator:
        yield emulator


@pytest.fixture
def run(tmp_path: Path, arm: ArmEmulator) -> Iterator[Run]:
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "edgewright.toml").write_text(
        f'[azure]\nsubscription_id = "{SUBSCRIPTION}"\nresource_group = "{GROUP}"\ncontainer_registry = "mine"\n'
        f'arm_endpoint = "{arm.url}"\nca_file = "{arm.ca_file}"\n'
    )
    with managed_identity() as identity:

        def runner(*words: str, **environ: str) -> Result:
            with contextlib.chdir(folder):
                result = CliRunner().invoke(app, list(words), env={**identity, **environ})
            assert "unexpected" not in result.stderr, result.stderr
            return result

        yield runner


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def login(made: Any) -> BasicCredentials:
    return BasicCredentials(made["username"], Secret(made["password"]))


@pytest.fixture
def pushed(run: Run, registry: TokenRegistry, tmp_path: Path) -> ImageRef:
    """An image in two repositories, pushed by the admin user: it may."""
    admin = run("registry", "credentials", registry.address, "--source", "acr-admin", *WANTED)
    assert "may push and delete everything" in admin.stderr
    store = ContentStore(tmp_path / "store")
    image = put_image(store, {"model": b"weights"})
    with RegistryClient(registry.address, credentials=login(document(admin))) as client:
        for repository in ("digits", "secret"):
            client.push_image(store, image, repository, "1")
    return ImageRef.parse(f"{registry.address}/digits:1").with_digest(image.digest)


WANTED = ("--repository", "digits", "--show", "--json")


def test_token_pulls_its_repository_and_neither_pushes_nor_pulls_another(
    run: Run, registry: TokenRegistry, pushed: ImageRef, tmp_path: Path
) -> None:
    acr = ("registry", "credentials", registry.address, "--source", "acr")
    made = document(run(*acr, *WANTED))
    assert (made["source"], made["repositories"]) == ("Azure token", ["digits"])
    store = ContentStore(tmp_path / "pulled")
    with RegistryClient(registry.address, credentials=login(made)) as client:
        assert client.pull_image(pushed, AMD64, store).manifest
        with pytest.raises(RegistryAuthError):
            client.push_blob("digits", store.put_bytes(b"mine").describe("text/plain"), store)
        with pytest.raises(RegistryAuthError):
            client.head_manifest("secret", "1")

    rotated = document(run(*acr, "--rotate", *WANTED))
    assert rotated["username"] == made["username"]
    assert rotated["password"] != made["password"]
    for each in (made, rotated):
        assert opens(registry, each)

    [user] = document(run("registry", "list", registry.address, "--json"))
    assert (user["username"], user["repositories"], user["daysLeft"]) == (made["username"], ["digits"], 89)
    assert run("registry", "revoke", made["username"], registry.address).exit_code == 0
    assert not opens(registry, made)
    assert not opens(registry, rotated)
    assert document(run("registry", "list", registry.address, "--json")) == []


def opens(registry: TokenRegistry, made: Any) -> bool:
    with RegistryClient(registry.address, credentials=login(made)) as client:
        try:
            return client.head_manifest("digits", "1") is not None
        except RegistryAuthError:
            return False


def test_every_form_of_a_token_logs_in_and_none_prints_it(
    run: Run, registry: TokenRegistry, pushed: ImageRef, tmp_path: Path
) -> None:
    words = ("registry", "credentials", registry.address, "--source", "acr", "--repository", "digits")
    made = document(run(*words, "--show", "--json"))
    for form in ("table", "json", "yaml", "manifest", "aci", "kubernetes"):
        assert made["password"] not in run(*words, "-o", form).output
        file = tmp_path / form
        assert run(*words, "-o", form, "--output-file", str(file)).exit_code == 0
        assert file.stat().st_mode & 0o777 == 0o600
    [entry] = json.loads((tmp_path / "manifest").read_text())["registryCredentials"].values()
    assert opens(registry, entry)
    assert opens(registry, json.loads((tmp_path / "aci").read_text()))


def test_skopeo_takes_the_pull_secret_and_its_own_login_is_read_here(
    run: Run, registry: TokenRegistry, pushed: ImageRef, tmp_path: Path
) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo: apt-get install skopeo")
    words = ("registry", "credentials", registry.address, "--source", "acr", "--repository", "digits")
    run(*words, "-o", "kubernetes", "--output-file", str(tmp_path / "secret.yml"))
    secret = yaml.safe_load((tmp_path / "secret.yml").read_text())
    auth_file = tmp_path / "auth.json"
    auth_file.write_bytes(base64.b64decode(secret["data"][".dockerconfigjson"]))
    plain = ["--tls-verify=false", "--authfile"]
    skopeo("inspect", "--raw", *plain, str(auth_file), f"docker://{registry.address}/digits:1")

    made = document(run(*words, "--show", "--json"))
    config = tmp_path / "docker" / "config.json"
    config.parent.mkdir()
    login_words = ("login", "--username", made["username"], "--password-stdin", *plain, str(config))
    skopeo(*login_words, registry.address, stdin=made["password"])
    found = credentials_for(registry.address, environ={"DOCKER_CONFIG": str(config.parent)})
    assert found == login(made)


def skopeo(*words: str, stdin: str = "") -> None:
    done = subprocess.run(
        ["skopeo", *words], input=stdin, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_credentials_near_their_end_are_said_in_the_list(run: Run, registry: TokenRegistry) -> None:
    words = ("registry", "credentials", registry.address, "--source", "acr", "--days", "10", *WANTED)
    made = document(run(*words))
    listed = run("registry", "list", registry.address)
    assert f"warning: {made['username']} ends" in listed.stderr


def test_device_gets_a_user_of_its_own(run: Run, registry: TokenRegistry, pushed: ImageRef) -> None:
    words = ("registry", "credentials", registry.address, "--source", "acr", *WANTED)
    shared, mine = document(run(*words)), document(run(*words, "--device", "press-4"))
    assert shared["username"] != mine["username"]
    assert "press-4" in mine["username"]
    run("registry", "revoke", mine["username"], registry.address)
    assert opens(registry, shared)
    assert not opens(registry, mine)


def test_manifest_of_an_image_in_azure_gets_a_token_of_its_own(
    run: Run, azure: EmulatedRegistry, tmp_path: Path
) -> None:
    azure.login_server = "mine.azurecr.io"
    images = [f"{name}=mine.azurecr.io/team/{name}@sha256:{'0' * 64}" for name in ("digits", "faces")]
    made = run("manifest", "generate", *images, "--output-file", "manifest.json")
    assert made.exit_code == 0, made.stderr
    manifest = DeploymentManifest.parse((tmp_path / "workspace" / "manifest.json").read_bytes())
    [entry] = manifest.credentials
    assert (entry.id, entry.address) == ("mine-azurecr-io", "mine.azurecr.io")
    rights = azure.rights(entry.username, entry.password.reveal())
    assert rights is not None
    assert {right.split("/")[2] for right in rights} == {"digits", "faces"}
    assert all(right.endswith("/read") for right in rights)


def test_script_of_the_original_document_runs_as_the_page_prints_it(
    run: Run, arm: ArmEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "credentials.md"
    [script] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    call = "ContainerRegistryManagementClient(DefaultAzureCredential(), subscription_id"
    assert script.count(call) == 1
    monkeypatch.chdir(tmp_path / "workspace")
    options = {
        "base_url": arm.url,
        "connection_verify": str(arm.ca_file),
        "credential_scopes": ["https://management.azure.com/.default"],
    }
    with managed_identity() as identity:
        for name, value in identity.items():
            monkeypatch.setenv(name, value)
        names: dict[str, Any] = {"EMULATOR": options}
        exec(script.replace(call, f"{call}, **EMULATOR"), names)  # noqa: S102 - only where it dials is added
    assert (names["reg_name"], names["username"], names["password"]) == ("mine", "mine", "admin-pass-1")
    with pytest.raises(ValueError, match="raw"):
        names["client"].registries.list_credentials(GROUP, "mine", raw=True)


def test_not_signed_in_is_one_message_with_the_way_in(run: Run, registry: TokenRegistry) -> None:
    words = ("registry", "credentials", registry.address, "--source", "acr", *WANTED)
    result = run(*words, AZURE_TOKEN_CREDENTIALS="AzureCliCredential", PATH="/nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    lines = [line for line in result.stderr.splitlines() if not line.startswith("credentials for ")]
    assert len(lines) == 2, result.stderr
    assert "nobody is signed in to Azure" in lines[0]
    assert lines[0].endswith("AzureCliCredential: Azure CLI not found on path")
    assert lines[1] == "next: az login"


def test_registry_that_nothing_here_knows_is_said_with_the_sources(run: Run) -> None:
    result = run("registry", "credentials", "other.example", "--repository", "digits")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "next: edgewright registry credentials other.example --source docker" in result.stderr
    absent = run("registry", "credentials", "x.azurecr.io", "--repository", "digits")
    assert "no registry x.azurecr.io in subscription" in absent.stderr
