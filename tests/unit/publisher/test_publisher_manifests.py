"""From images to a manifest: pinned, routed, within the twin's budget, and what IoT Edge's own schemas say to it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from publisher_workspaces import make_runtime_wheels, make_workspace, write_score
from registry_double import RegistryDouble

from edge_containers.image_model import Platform
from edge_contracts.errors import ContractError, EdgewrightError, PublishError
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.layers import merge
from edge_contracts.manifest import (
    DeploymentManifest,
    DesiredStatus,
    ImagePullPolicy,
    RegistryCredential,
    RestartPolicy,
)
from edge_contracts.messages import Message
from edge_contracts.redact import Secret
from edge_contracts.routes import BrokeredEndpoint, Upstream
from publisher.build_request import BuildRequest
from publisher.container_flags import create_options
from publisher.credentials import GivenCredentials
from publisher.environments import Environment
from publisher.errors import NotFoundError, UsageError
from publisher.images import ContainerImage, Image
from publisher.manifests import (
    ModuleRequest,
    SystemSettings,
    default_routes,
    generate,
    generate_layer,
    parse_module,
    pin,
    registries_without_credentials,
)
from publisher.models import Model
from publisher.private_file import write_private
from publisher.workspace import Workspace

PINNED = ImageRef.parse(f"registry.example/digits@{ImageDigest.of(b'image')}")
CREDENTIALS = GivenCredentials("registry.example", "reader", Secret("pass-word"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """With `digits:1`, pushed as `team/digits`, and `digits:2`, which is not."""
    folder = tmp_path_factory.mktemp("workspace")
    workspace = make_workspace(folder / "w", make_runtime_wheels(folder / "wheels"))
    (folder / "digits.pkl").write_bytes(b"weights")
    model = Model.register(workspace, folder / "digits.pkl", "digits")
    request = BuildRequest(
        "digits",
        (model,),
        write_score(folder / "code"),
        Environment((), "3.11"),
        platforms=(Platform.parse("linux/amd64"),),
    )
    with RegistryDouble() as registry:
        ContainerImage.from_request(workspace, request).push(registry.address, repository="team/digits")
        ContainerImage.from_request(workspace, request)
        yield workspace


def requests(*names: str, **options: Any) -> list[ModuleRequest]:
    return [ModuleRequest(name, PINNED, **options) for name in names]


@contextmanager
def refused(kind: type[EdgewrightError], *parts: str) -> Iterator[None]:
    """The block fails so; message and next command hold these."""
    with pytest.raises(kind) as caught:
        yield
    for part in parts:
        assert part in f"{caught.value.message} {caught.value.next_command}"


# Modules and images.


def test_built_image_is_taken_where_it_was_pushed_by_digest(workspace: Workspace) -> None:
    request = parse_module(workspace, "digits:1")
    assert request.name == "digits"
    assert request.image.is_pinned
    assert str(request.image) == Image(workspace, id="digits:1").image_location
    assert request.image.repository == "team/digits"
    assert parse_module(workspace, "scorer=digits:1") == ModuleRequest("scorer", request.image)


def test_image_that_was_not_pushed_is_refused_with_the_command_that_pushes(workspace: Workspace) -> None:
    for text in ("digits:2", "scorer=digits"):
        with refused(NotFoundError, "digits:2", "edgewright image push digits:2"):
            parse_module(workspace, text)


def test_image_that_was_not_built_is_refused(workspace: Workspace) -> None:
    with refused(NotFoundError, "faces"):
        parse_module(workspace, "faces")


def test_reference_by_digest_is_taken_as_it_is(workspace: Workspace) -> None:
    assert parse_module(workspace, f"scorer={PINNED}") == ModuleRequest("scorer", PINNED)
    assert parse_module(workspace, str(PINNED)).name == "digits"


@pytest.mark.parametrize(
    ("text", "kind", "part"),
    [
        ("registry.example/Digits:1", ContractError, "'Digits'"),
        (f"my.module={PINNED}", UsageError, "'my.module'"),
        (f"mö={PINNED}", UsageError, "a-zA-Z0-9_-"),
        ("digits:latest", UsageError, "'digits:latest'"),
        (f"registry.example/digits:1@{PINNED.digest}", ContractError, "drop the tag"),
        ("scorer=x@sha256:00", ContractError, "64"),
    ],
)
def test_bad_module_is_refused(
    workspace: Workspace, text: str, kind: type[EdgewrightError], part: str
) -> None:
    with refused(kind, part):
        parse_module(workspace, text)


# Generation.


def test_manifest_names_images_by_digest_and_is_found_good() -> None:
    manifest = generate(requests("scorer", env={"LEVEL": "3"}), sources=[CREDENTIALS])
    scorer = manifest.modules["scorer"]
    assert (scorer.image, scorer.env, scorer.create_options) == (PINNED, {"LEVEL": "3"}, {})
    assert manifest.credentials == (
        RegistryCredential("registry-example", "registry.example", "reader", Secret("pass-word")),
    )
    assert manifest.check() == []
    assert DeploymentManifest.parse(json.dumps(manifest.dump())) == manifest


def test_registry_without_credentials_is_known() -> None:
    assert registries_without_credentials(generate(requests("a"))) == ["registry.example"]
    assert registries_without_credentials(generate(requests("a"), sources=[CREDENTIALS])) == []
    nowhere = ModuleRequest("a", ImageRef.parse(f"digits@{PINNED.digest}"))
    assert registries_without_credentials(generate([nowhere], sources=[CREDENTIALS])) == []


def test_several_images_of_one_registry_share_a_credential() -> None:
    other = ImageRef.parse(f"registry.example/faces@{PINNED.digest}")
    manifest = generate([*requests("a"), ModuleRequest("b", other)], sources=[CREDENTIALS])
    assert [credential.address for credential in manifest.credentials] == ["registry.example"]


def test_default_routes_take_the_devices_messages_in_and_results_up() -> None:
    manifest = generate(requests("scorer", "second"))
    routes = {route.name: route for route in manifest.routes}
    assert set(routes) == {"scorer-in", "scorer-out", "second-in", "second-out"}
    assert routes["scorer-in"].sink == BrokeredEndpoint("scorer", "input1")
    assert routes["scorer-out"].sink == Upstream()

    def takes(name: str, message: Message) -> bool:
        route = routes[name]
        return route.matches(message) and route.source_module in (None, message.connection_module_id)

    of_device = Message(b"1", connection_device_id="d")
    of_scorer = Message(b"2", connection_device_id="d", connection_module_id="scorer", output_name="output1")
    assert takes("scorer-in", of_device)
    assert takes("second-in", of_device)
    assert not takes("scorer-in", of_scorer)
    assert not takes("second-in", of_scorer)
    assert takes("scorer-out", of_scorer)
    assert not takes("second-out", of_scorer)


def test_own_routes_take_the_place_of_the_default_ones() -> None:
    manifest = generate(requests("scorer"), routes={"up": "FROM /messages/* INTO $upstream"})
    assert [route.name for route in manifest.routes] == ["up"]
    assert default_routes(["scorer"]).keys().isdisjoint({"up"})


def test_module_says_what_is_asked_of_it() -> None:
    request = ModuleRequest(
        "scorer",
        PINNED,
        create_options=create_options(ports=["127.0.0.1:8080"], memory="64m"),
        version="1.2",
        status=DesiredStatus.STOPPED,
        restart_policy=RestartPolicy.ON_FAILURE,
        startup_order=3,
        image_pull_policy=ImagePullPolicy.NEVER,
        desired={"threshold": 0.5},
    )
    system = SystemSettings("mirror.example/agent:1.5", "mirror.example/hub:1.5", 60)
    manifest = generate([request], system=system)
    assert manifest.modules == {"scorer": request.settings()}
    assert manifest.module_twins == {"scorer": {"threshold": 0.5}}
    assert (str(manifest.edge_agent.image), manifest.store_and_forward_ttl_s) == (
        "mirror.example/agent:1.5",
        60,
    )


def test_tag_is_resolved_to_the_digest_that_the_registry_has(workspace: Workspace) -> None:
    with RegistryDouble() as registry:
        pushed = Image(workspace, id="digits:1").push(registry.address, repository="team/digits")
        tagged = parse_module(workspace, f"scorer={registry.address}/team/digits:1")
        assert not tagged.image.is_pinned
        assert pin(tagged.image) == pushed.location
        assert pin(pushed.location) == pushed.location
        with refused(NotFoundError, registry.address, "team/digits:7"):
            pin(replace(tagged.image, tag="7"))
        with refused(NotFoundError, "team/digits:latest"):
            pin(replace(tagged.image, tag=None))


def test_tag_is_resolved_with_the_registrys_user(workspace: Workspace) -> None:
    with RegistryDouble() as registry:
        asked: list[str] = []
        Image(workspace, id="digits:1").push(registry.address, repository="team/digits")

        def login(host: str) -> None:
            asked.append(host)

        pin(ImageRef.parse(f"{registry.address}/team/digits:1"), login)
        assert asked == [registry.address]


def test_layer_holds_modules_routes_and_credentials_by_path() -> None:
    layer = generate_layer(requests("scorer"), sources=[CREDENTIALS])
    content = layer.dump()["modulesContent"]
    assert set(content["$edgeAgent"]) == {
        "properties.desired.modules.scorer",
        "properties.desired.runtime.settings.registryCredentials.registry-example",
    }
    assert set(content["$edgeHub"]) == {
        "properties.desired.routes.scorer-in",
        "properties.desired.routes.scorer-out",
    }
    assert merge(generate([]), [layer]).modules == generate(requests("scorer")).modules


def test_module_is_named_once() -> None:
    with refused(UsageError, "'scorer'", "once"):
        generate(requests("scorer", "other", "scorer"))


@pytest.mark.parametrize(
    ("route", "part"),
    [
        ("FROM /messages INTO", "the end of the route"),
        ("INTO $upstream", "FROM"),
        ("FROM /messages/* INTO $down", "$down"),
    ],
)
def test_bad_route_is_refused_by_name_before_credentials_are_made(route: str, part: str) -> None:
    class Never:
        def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> None:
            raise AssertionError("credentials were made for a manifest that cannot be used")

    with refused(ContractError, "routes.mine", part):
        generate(requests("scorer"), routes={"mine": route}, sources=[Never()])
    with refused(ContractError, "32768"):
        generate(
            requests("scorer", env={"A": "x" * 4000, **dict.fromkeys("BCDEFGHIJ", "x" * 4000)}),
            sources=[Never()],
        )


@pytest.mark.reference
def test_generated_manifest_passes_the_official_schemas(reference_data: Path) -> None:
    modules = [
        ModuleRequest(
            "scorer", PINNED, env={"LEVEL": "3"}, create_options=create_options(ports=["127.0.0.1:5001"])
        ),
        ModuleRequest("second", PINNED),
    ]
    content = generate(modules, sources=[CREDENTIALS]).dump()["modulesContent"]
    for twin, kind in (("$edgeAgent", "edgeagent"), ("$edgeHub", "edgehub")):
        schema = json.loads(
            (reference_data / "schemas" / f"azure-iot-{kind}-deployment-1.1.json").read_text()
        )
        assert list(jsonschema.Draft4Validator(schema).iter_errors({twin: content[twin]})) == []
        assert content[twin]["properties.desired"]["schemaVersion"] == "1.1"


# The file it goes to.


def test_private_file_is_its_owners_alone_even_over_a_public_one(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    for left_over in (path, tmp_path / ".manifest.json.new"):
        left_over.write_text("old")
        left_over.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with refused(PublishError, str(tmp_path / "none" / "manifest.json"), "No such file"):
        write_private(tmp_path / "none" / "manifest.json", "new")


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder, Path("/dev/null")):
        with refused(PublishError, str(path), "no file"):
            write_private(path, "new")
    assert pipe.is_fifo()


def test_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_private(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
