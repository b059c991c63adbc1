from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from contracts_manifests import DIGEST, PASSWORD, complete, manifests
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import (
    DeploymentManifest,
    ModuleSettings,
    RegistryCredential,
    RestartPolicy,
    Severity,
)
from edge_contracts.redact import Secret
from edge_contracts.routes import BrokeredEndpoint

AGENT = "modulesContent.$edgeAgent.properties.desired"
HUB = "modulesContent.$edgeHub.properties.desired"
SCORER = f"{AGENT}.modules.scorer"
MISSING = object()


def at(document: dict[str, Any], *path: str) -> dict[str, Any]:
    for key in path:
        document = document[key]
    return document


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The complete manifest with one member set, or removed."""
    document = complete()
    parent = at(document["modulesContent"], *path[:-1])
    if value is MISSING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return document


def agent(*path: str) -> tuple[str, ...]:
    return ("$edgeAgent", "properties.desired", *path)


def hub(*path: str) -> tuple[str, ...]:
    return ("$edgeHub", "properties.desired", *path)


def scorer(*path: str) -> tuple[str, ...]:
    return agent("modules", "scorer", *path)


def test_complete_manifest_is_read() -> None:
    manifest = DeploymentManifest.parse(complete())
    module = manifest.modules["scorer"]
    assert str(module.image) == f"registry.example/scorer@{DIGEST}"
    assert module.env == {"LEVEL": "info", "COUNT": "3", "ON": "true"}
    assert module.create_options == {"HostConfig": {}}
    assert (module.version, module.status, module.restart_policy, module.startup_order) == (
        "1.0",
        "running",
        "always",
        1,
    )
    assert module.desired == {"threshold": 0.5, "labels": ["a", "b"]} == manifest.module_twins["scorer"]
    assert (manifest.routes[0].name, manifest.routes[0].priority, manifest.routes[0].ttl_s) == ("up", 1, 3600)
    assert manifest.routes[1].sink == BrokeredEndpoint("scorer", "in1")
    assert manifest.credentials == (RegistryCredential("r1", "registry.example", "u", Secret(PASSWORD)),)
    assert manifest.store_and_forward_ttl_s == 7200
    assert (str(manifest.edge_agent.image), manifest.edge_agent.startup_order) == ("mcr.example/agent:1.5", 0)
    assert str(manifest.edge_hub.image) == "mcr.example/hub:1.5"
    assert manifest.check() == []


@pytest.mark.parametrize("encode", [json.dumps, lambda document: json.dumps(document).encode()])
def test_text_and_bytes_are_read(encode: Any) -> None:
    assert DeploymentManifest.parse(encode(complete())) == DeploymentManifest.parse(complete())


def test_manifest_inside_a_configuration_is_read() -> None:
    configuration = {"content": complete(), "metrics": {"queries": {}}}
    assert DeploymentManifest.parse(configuration).dump() == complete()


unknown = st.dictionaries(
    st.sampled_from(["x1", "x2"]), st.integers(0, 9) | st.dictionaries(st.just("y"), st.booleans())
)
PLACES: list[tuple[str, ...]] = [
    (),
    ("$edgeAgent",),
    ("scorer",),
    agent(),
    agent("runtime"),
    agent("runtime", "settings"),
    agent("runtime", "settings", "registryCredentials", "r1"),
    agent("systemModules", "edgeHub"),
    scorer(),
    scorer("settings"),
    scorer("env", "LEVEL"),
    hub(),
    hub("routes", "up"),
    hub("storeAndForwardConfiguration"),
]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PLACES), unknown)
def test_unknown_members_survive(place: tuple[str, ...], members: dict[str, Any]) -> None:
    document = complete()
    at(document["modulesContent"], *place).update(members if place else {})
    document["beside"] = members
    before = copy.deepcopy(document)
    manifest = DeploymentManifest.parse(document)
    assert manifest.dump() == before == document
    assert DeploymentManifest.parse(manifest.dump()) == manifest


@settings(max_examples=20, deadline=None)
@given(manifests())
def test_assembled_manifests_survive_a_round_trip(manifest: DeploymentManifest) -> None:
    document = manifest.dump()
    again = DeploymentManifest.parse(json.dumps(document))
    assert again == manifest
    assert again.dump() == document
    device = DeploymentManifest.from_edge_agent_desired(
        {**document["modulesContent"]["$edgeAgent"]["properties.desired"], "$version": 7, "$metadata": {}},
        {**document["modulesContent"]["$edgeHub"]["properties.desired"], "$version": 3},
    )
    assert {name: str(module.image) for name, module in device.modules.items()} == {
        name: str(module.image) for name, module in manifest.modules.items()
    }
    assert (device.routes, device.credentials) == (manifest.routes, manifest.credentials)


def test_what_is_read_does_not_follow_later_changes() -> None:
    document = complete()
    manifest = DeploymentManifest.parse(document)
    document["modulesContent"].clear()
    manifest.dump()["modulesContent"].clear()
    manifest.module_twins["scorer"].clear()
    assert manifest.dump() == complete()


def test_password_is_in_the_document_and_nowhere_else() -> None:
    manifest = DeploymentManifest.parse(complete())
    assert PASSWORD not in repr(manifest)
    assert PASSWORD in json.dumps(manifest.dump())


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        (agent("schemaVersion"), "1.2", f"{AGENT}.schemaVersion", "must be '1.0' or '1.1', not '1.2'"),
        (agent("schemaVersion"), MISSING, f"{AGENT}.schemaVersion", "must be '1.0' or '1.1', not None"),
        (hub("schemaVersion"), "1.4", f"{HUB}.schemaVersion", "must be '1.0' or '1.1', not '1.4'"),
        (
            scorer("settings", "image"),
            MISSING,
            f"{SCORER}.settings.image",
            f"'{SCORER}.settings.image' must be an image reference, but is missing",
        ),
        (scorer("settings", "image"), 7, f"{SCORER}.settings.image", "must be an image reference, not 7"),
        (
            scorer("settings", "image"),
            f"registry.example/scorer:1@{DIGEST}",
            f"{SCORER}.settings.image",
            "expected a tag or a digest, found both, which IoT Edge refuses: drop the tag, in "
            f"'{SCORER}.settings.image'",
        ),
        (
            scorer("settings", "image"),
            "Registry.example/Scorer:1",
            f"{SCORER}.settings.image",
            "not 'Scorer', in",
        ),
        (
            scorer("settings"),
            MISSING,
            f"{SCORER}.settings",
            "must be a JSON object with 'image', but is missing",
        ),
        (scorer("type"), "podman", f"{SCORER}.type", "must be 'docker', not 'podman'"),
        (scorer("status"), "paused", f"{SCORER}.status", "must be one of running, stopped, not 'paused'"),
        (scorer("status"), MISSING, f"{SCORER}.status", "must be one of running, stopped, but is missing"),
        (
            scorer("restartPolicy"),
            "sometimes",
            f"{SCORER}.restartPolicy",
            "must be one of never, on-failure, on-unhealthy, always, not 'sometimes'",
        ),
        (scorer("imagePullPolicy"), 1, f"{SCORER}.imagePullPolicy", "must be one of on-create, never, not 1"),
        (scorer("startupOrder"), -1, f"{SCORER}.startupOrder", "an integer from 0 to 4294967295, not -1"),
        (scorer("startupOrder"), True, f"{SCORER}.startupOrder", "an integer from 0 to 4294967295, not True"),
        (scorer("version"), 1, f"{SCORER}.version", "must be text, not 1"),
        (
            scorer("env", "A.B"),
            {"value": "x"},
            f"{SCORER}.env.A.B",
            "must be named without '+', '#', '$', '.'",
        ),
        (scorer("env", "A"), "x", f"{SCORER}.env.A", "must be a JSON object with 'value', not 'x'"),
        (
            scorer("env", "A"),
            {"value": []},
            f"{SCORER}.env.A.value",
            "a string, a number or a boolean, not []",
        ),
        (scorer("settings", "createOptions"), "{", f"{SCORER}.settings.createOptions", "must be JSON: "),
        (
            scorer("settings", "createOptions03"),
            "{}",
            f"{SCORER}.settings.createOptions03",
            "createOptions03' must be the piece 'createOptions02'",
        ),
        (scorer(), "x", SCORER, "must be a JSON object, not 'x'"),
        (agent("modules", "my module"), {}, f"{AGENT}.modules.my module", "not 'my module'"),
        (
            agent("modules", "a.b"),
            {},
            f"{AGENT}.modules.a.b",
            "Module name must be letters, digits, '_' and '-'",
        ),
        (agent("modules", ""), {}, f"{AGENT}.modules.", "not ''"),
        (agent("modules", "edgeHub"), {}, f"{AGENT}.modules.edgeHub", "not be that of a system module"),
        (agent("modules"), [], f"{AGENT}.modules", "must be a JSON object of modules, not []"),
        (agent("systemModules", "edgeHub"), MISSING, f"{AGENT}.systemModules.edgeHub", "but is missing"),
        (agent("runtime", "type"), "oci", f"{AGENT}.runtime.type", "must be 'docker', not 'oci'"),
        (agent("runtime"), MISSING, f"{AGENT}.runtime", "but is missing"),
        (
            hub("routes", "up"),
            "FROM x",
            f"{HUB}.routes.up",
            f"'{HUB}.routes.up' at character 6: expected a source",
        ),
        (
            hub("routes", "up", "route"),
            "FROM x",
            f"{HUB}.routes.up.route",
            "at character 6: expected a source",
        ),
        (hub("routes", "up", "priority"), 10, f"{HUB}.routes.up.priority", "an integer from 0 to 9, not 10"),
        (hub("routes", "a b"), "FROM /* INTO $upstream", f"{HUB}.routes.a b", "must be named without"),
        (hub("routes"), MISSING, f"{HUB}.routes", "must be a JSON object of routes, but is missing"),
        (
            hub("storeAndForwardConfiguration"),
            MISSING,
            f"{HUB}.storeAndForwardConfiguration",
            "must be a JSON object with timeToLiveSecs, but is missing",
        ),
        (
            hub("storeAndForwardConfiguration", "timeToLiveSecs"),
            7200.0,
            f"{HUB}.storeAndForwardConfiguration.timeToLiveSecs",
            "must be an integer of seconds, not 7200.0",
        ),
        (("$edgeHub",), MISSING, "modulesContent.$edgeHub", "but is missing"),
        (("$edgeAgent",), {}, AGENT, "must be a JSON object, but is missing"),
        (
            ("$edgeAgent", "properties.desired.modules.x"),
            {},
            "modulesContent.$edgeAgent",
            "not 'properties.desired.modules.x' of a layered manifest",
        ),
        (("scorer",), 5, "modulesContent.scorer", "must be a JSON object with 'properties.desired', not 5"),
        (("a b",), {}, "modulesContent.a b", "Module name must be letters"),
        (
            ("scorer", "properties.desired", "a.b"),
            1,
            "modulesContent.scorer.properties.desired.a.b",
            "Key must be 1 to 1024 bytes without '.'",
        ),
        (scorer("note"), "x" * 4097, f"{SCORER}.note", "must be at most 4096 bytes long, not 4097"),
    ],
)
def test_bad_member_is_named_by_its_path(path: tuple[str, ...], value: Any, where: str, message: str) -> None:
    with pytest.raises(ContractError) as caught:
        DeploymentManifest.parse(changed(path, value))
    assert caught.value.where == where
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("value", "where", "message"),
    [
        ({"username": "u", "password": "", "address": "a"}, ".password", "must be text that is not blank"),
        ({"password": PASSWORD, "address": "a"}, ".username", "must be text that is not blank"),
        (
            {"username": "u", "password": PASSWORD, "address": "a b"},
            ".address",
            "without white space, not 'a b'",
        ),
        (PASSWORD, "", "must be an object with username, password and address"),
    ],
)
def test_bad_credential_is_named_without_its_password(value: Any, where: str, message: str) -> None:
    path = agent("runtime", "settings", "registryCredentials", "r1")
    with pytest.raises(ContractError) as caught:
        DeploymentManifest.parse(changed(path, value))
    assert caught.value.where == f"{AGENT}.runtime.settings.registryCredentials.r1{where}"
    assert message in caught.value.message
    assert PASSWORD not in caught.value.message


def test_credentials_of_the_wrong_shape_are_shown_without_passwords() -> None:
    path = agent("runtime", "settings", "registryCredentials")
    with pytest.raises(ContractError, match=r"must be a JSON object of credentials, not \[\{") as caught:
        DeploymentManifest.parse(changed(path, [{"username": "u", "password": PASSWORD}]))
    assert PASSWORD not in caught.value.message


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ("", "'deployment manifest' must be JSON: Expecting value: line 1 column 1"),
        ("[]", "'deployment manifest' must be a JSON object, not []"),
        ('{"a": NaN}', "is no JSON number"),
        (b"\xff\xfe\xff", "'deployment manifest' must be JSON"),
        ("[" * 100_000, "'deployment manifest' must be JSON"),
        ({}, "'modulesContent' must be a JSON object with $edgeAgent and $edgeHub, but is missing"),
        (5, "'deployment manifest' must be a JSON object, not 5"),
    ],
)
def test_what_is_no_manifest_is_refused(document: Any, part: str) -> None:
    with pytest.raises(ContractError) as caught:
        DeploymentManifest.parse(document)
    assert part in caught.value.message


def test_unknown_schema_version_has_a_code_of_its_own() -> None:
    with pytest.raises(ContractError) as caught:
        DeploymentManifest.parse(changed(agent("schemaVersion"), "2.0"))
    assert caught.value.code == "manifest-schema-version"


def module(name: str, **fields: Any) -> ModuleSettings:
    return ModuleSettings(name, ImageRef.parse(f"registry.example/{name}@{DIGEST}"), **fields)


def test_manifest_over_the_budget_names_size_limit_and_largest_modules() -> None:
    modules = [module(f"m{size}", env={"PAD": "x" * size}) for size in (4000, 3900, 3800, 3700)]
    modules += [module(f"n{index}", create_options={"Labels": {"pad": "y" * 3600}}) for index in range(5)]
    with pytest.raises(ContractError) as caught:
        DeploymentManifest.assemble(modules, {})
    error = caught.value
    assert (error.code, error.where) == ("manifest-size", AGENT)
    assert f"'{AGENT}' must be at most 32768 bytes by IoT Hub's rule, not 3" in error.message
    largest = error.message.split("largest: ")[1]
    assert [part.split(" ")[0] for part in largest.split(", ")] == ["m4000", "m3900", "m3800"]


def test_29_modules_of_a_kilobyte_fail_here_not_on_the_device() -> None:
    modules = [module(f"m{index:02d}", create_options={"Labels": {"pad": "x" * 600}}) for index in range(29)]
    with pytest.raises(
        ContractError, match=r"properties.reported \(predicted\)' must be at most 32768 bytes"
    ) as caught:
        DeploymentManifest.assemble(modules, {})
    assert caught.value.message.count(" bytes, ") == 2
    assert DeploymentManifest.assemble(modules[:20], {}).desired_size_bytes() < 32768


def test_twins_of_modules_and_routes_have_their_own_budget() -> None:
    with pytest.raises(ContractError) as caught:
        DeploymentManifest.assemble([module("m", desired={"a": ["x" * 4000] * 9, "b": 1})], {})
    assert caught.value.where == "modulesContent.m.properties.desired"
    assert "not 36010; largest: a 36001 bytes, b 9 bytes" in caught.value.message
    long_route = f"FROM /messages/* WHERE kind = '{'x' * 4000}' INTO $upstream"
    with pytest.raises(ContractError) as caught:
        DeploymentManifest.assemble([], {f"r{index}": long_route for index in range(9)})
    assert caught.value.where == HUB


def test_sizes_follow_iot_hubs_rule_and_grow_with_the_manifest() -> None:
    small = DeploymentManifest.assemble([module("m")], {})
    large = DeploymentManifest.assemble([module("m", env={"A": "xyz"})], {})
    assert large.desired_size_bytes() - small.desired_size_bytes() == len("env") + len("A") + len(
        "value"
    ) + len("xyz")
    assert large.predicted_reported_size_bytes() > small.predicted_reported_size_bytes()
    assert small.predicted_reported_size_bytes() > small.desired_size_bytes() > 0


def test_findings_name_code_severity_and_place() -> None:
    document = complete()
    modules = at(document["modulesContent"], *agent("modules"))
    modules["scorer"]["settings"]["image"] = "registry.example/scorer:1"
    modules["scorer"]["restartPolicy"] = "on-unhealthy"
    at(document["modulesContent"], *hub("routes")).update(
        {
            "a": "FROM /messages/modules/nobody/* INTO $upstream",
            "b": 'FROM /messages/modules/Scorer/* INTO BrokeredEndpoint("/modules/absent/inputs/i")',
            "c": "FROM /messages/modules/*/outputs/o INTO $upstream",
        }
    )
    document["modulesContent"]["ghost"] = {"properties.desired": {"a": 1}}
    credentials = at(document["modulesContent"], *agent("runtime", "settings", "registryCredentials"))
    credentials["r2"] = {"username": "u", "password": PASSWORD, "address": "other.example"}
    findings = DeploymentManifest.parse(document).check()
    assert [(finding.code, finding.severity, finding.where) for finding in findings] == [
        ("route-unknown-module", Severity.ERROR, f"{HUB}.routes.a"),
        ("route-unknown-module", Severity.ERROR, f"{HUB}.routes.b"),
        ("route-never-matches", Severity.ERROR, f"{HUB}.routes.c"),
        ("restart-policy", Severity.WARNING, f"{SCORER}.restartPolicy"),
        ("image-unpinned", Severity.WARNING, f"{SCORER}.settings.image"),
        ("credential-unused", Severity.WARNING, f"{AGENT}.runtime.settings.registryCredentials.r2"),
        ("twin-unknown-module", Severity.WARNING, "modulesContent.ghost"),
    ]
    assert findings[0].message == f"'{HUB}.routes.a' takes messages of 'nobody', which is no module here"
    assert all(finding.where in finding.message and PASSWORD not in finding.message for finding in findings)


def test_four_fifths_of_the_budget_are_a_finding() -> None:
    manifest = DeploymentManifest.assemble([module("m", desired={"a": ["x" * 3700] * 8})], {})
    assert [finding.code for finding in manifest.check()] == ["twin-budget"]
    assert "takes 29601 of 32768 bytes (90 %)" in manifest.check()[0].message


def test_assembling_refuses_two_modules_of_one_name_and_on_unhealthy() -> None:
    with pytest.raises(ContractError, match="must be one module, found two of this name") as caught:
        DeploymentManifest.assemble([module("m"), module("m")], {})
    assert caught.value.where == f"{AGENT}.modules.m"
    with pytest.raises(ContractError, match="must be never, on-failure or always, not 'on-unhealthy'"):
        DeploymentManifest.assemble([module("m", restart_policy=RestartPolicy.ON_UNHEALTHY)], {})


def test_assembling_takes_system_images() -> None:
    manifest = DeploymentManifest.assemble(
        [],
        {},
        edge_agent_image="mirror.example/agent:1",
        edge_hub_image=ImageRef.parse("mirror.example/hub:1"),
    )
    assert (str(manifest.edge_agent.image), str(manifest.edge_hub.image)) == (
        "mirror.example/agent:1",
        "mirror.example/hub:1",
    )


def test_device_reads_its_twins_even_without_routes() -> None:
    desired = at(complete()["modulesContent"], *agent())
    manifest = DeploymentManifest.from_edge_agent_desired({**desired, "$version": 4, "$metadata": {"a": 1}})
    assert (list(manifest.modules), manifest.routes) == (["scorer"], ())
    assert "$version" not in json.dumps(manifest.dump())


def test_twin_that_no_deployment_has_set_has_a_code_of_its_own() -> None:
    with pytest.raises(ContractError, match="must hold a deployment, but is empty") as caught:
        DeploymentManifest.from_edge_agent_desired({"$version": 1, "$metadata": {}})
    assert caught.value.code == "manifest-empty"
