"""Manifests broken in one place are refused, or found in error, with the path of that place.

Each breakage is one that Azure's schemas or IoT Edge's own readers refuse; the table is applied to generated manifests.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from contracts_manifests import MANIFESTS, complete, manifests
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.manifest import DeploymentManifest, Severity

REMOVED = object()
AGENT = "modulesContent.$edgeAgent.properties.desired"
HUB = "modulesContent.$edgeHub.properties.desired"
LONG = "x" * 5000

# Path below the section, what is put there, and the path that the message names where it is another one.
BREAKAGES: tuple[tuple[str, str, Any], ...] = (
    (AGENT, "schemaVersion", "1.2"),
    (AGENT, "schemaVersion", 1.1),
    (AGENT, "schemaVersion", REMOVED),
    (AGENT, "runtime", REMOVED),
    (AGENT, "runtime.type", "podman"),
    (AGENT, "runtime.settings", REMOVED),
    (AGENT, "runtime.settings.registryCredentials", []),
    (AGENT, "runtime.settings.registryCredentials.a$b", {"username": "u", "password": "p", "address": "a.b"}),
    (AGENT, "runtime.settings.registryCredentials.one", {"username": "u", "password": "p", "address": "a b"}),
    (AGENT, "runtime.settings.registryCredentials.one", {"username": "u", "address": "a.b"}),
    (AGENT, "runtime.settings.registryCredentials.one", {"username": "", "password": "p", "address": "a.b"}),
    (AGENT, "systemModules", REMOVED),
    (AGENT, "systemModules.edgeHub", REMOVED),
    (AGENT, "systemModules.edgeAgent.settings", REMOVED),
    (AGENT, "systemModules.edgeAgent.settings.image", ""),
    (AGENT, "systemModules.edgeHub.restartPolicy", "sometimes"),
    (AGENT, "modules", []),
    (AGENT, "modules.a b", {}),
    (AGENT, "modules.edgeHub", {}),
    (AGENT, "modules.broken", "no object"),
    (AGENT, "modules.broken.type", "Docker"),
    (AGENT, "modules.broken.type", REMOVED),
    (AGENT, "modules.broken.status", "paused"),
    (AGENT, "modules.broken.status", REMOVED),
    (AGENT, "modules.broken.restartPolicy", "unless-stopped"),
    (AGENT, "modules.broken.restartPolicy", REMOVED),
    (AGENT, "modules.broken.imagePullPolicy", "always"),
    (AGENT, "modules.broken.startupOrder", -1),
    (AGENT, "modules.broken.startupOrder", 4294967296),
    (AGENT, "modules.broken.startupOrder", 1.5),
    (AGENT, "modules.broken.startupOrder", True),
    (AGENT, "modules.broken.version", 1),
    (AGENT, "modules.broken.env", ["A=1"]),
    (AGENT, "modules.broken.env.A+B", {"value": "1"}),
    (AGENT, "modules.broken.env.A", "1"),
    (AGENT, "modules.broken.env.A", {"value": ["1"]}),
    (AGENT, "modules.broken.env.A", {"value": LONG}),
    (AGENT, "modules.broken.settings", REMOVED),
    (AGENT, "modules.broken.settings.image", REMOVED),
    (AGENT, "modules.broken.settings.image", "UPPER/case:1"),
    (AGENT, "modules.broken.settings.image", "x:1@sha256:" + "0" * 64),
    (AGENT, "modules.broken.settings.image", "x@sha256:0"),
    (AGENT, "modules.broken.settings.createOptions", "{"),
    (AGENT, "modules.broken.settings.createOptions", "[]"),
    (AGENT, "modules.broken.settings.createOptions", {}),
    (AGENT, "modules.broken.settings.createOptions07", "{}"),
    (AGENT, "modules.broken.startUpOrder", 1),
    (AGENT, "modules.broken.settings.tag", "1"),
    (AGENT, "modules.broken.env.A", {"value": "1", "secret": True}),
    (AGENT, "runtime.settings.loggingoptions", ""),
    (AGENT, "systemModules.third", {}),
    (AGENT, "colour", "red"),
    (HUB, "schemaVersion", "2.0"),
    (HUB, "routes", REMOVED),
    (HUB, "routes", []),
    (HUB, "routes.a b", "FROM /messages/* INTO $upstream"),
    (HUB, "routes.bad", ""),
    (HUB, "routes.bad", "FROM /messages/* INTO nowhere"),
    (HUB, "routes.bad", {"priority": 1}),
    (HUB, "routes.bad", {"route": "FROM /messages/* INTO $upstream", "priority": 10}),
    (HUB, "routes.bad", {"route": "FROM /messages/* INTO $upstream", "timeToLiveSecs": -1}),
    (HUB, "routes.bad", {"route": "FROM /messages/* INTO $upstream", "ttl": 1}),
    (HUB, "routes.bad", 'FROM /messages/* INTO BrokeredEndpoint("/modules/no-such-module/inputs/i")'),
    (HUB, "routes.bad", "FROM /messages/modules/no-such-module/* INTO $upstream"),
    (HUB, "storeAndForwardConfiguration", REMOVED),
    (HUB, "storeAndForwardConfiguration.timeToLiveSecs", "7200"),
    (HUB, "storeAndForwardConfiguration.timeToLiveSecs", 2**31),
    (HUB, "storeAndForwardConfiguration.maxSize", 1),
)


def broken(document: dict[str, Any], section: str, path: str, value: Any) -> dict[str, Any]:
    """A copy with one member replaced or removed; `modules.broken` is a good module to begin with."""
    changed = copy.deepcopy(document)
    target: Any = changed
    for part in ("modulesContent", section.split(".")[1], "properties.desired"):
        target = target[part]
    if ".broken." in f".{path}.":
        scorer = complete()["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["scorer"]
        target["modules"]["broken"] = scorer
    *parents, last = path.split(".")
    for part in parents:
        target = target.setdefault(part, {})
    if value is REMOVED:
        del target[last]
    else:
        target[last] = value
    return changed


def paths_of_errors(document: dict[str, Any]) -> list[str]:
    try:
        findings = DeploymentManifest.parse(document).check()
    except ContractError as error:
        assert str(error.where) in error.message
        return [str(error.where)]
    return [finding.where for finding in findings if finding.severity is Severity.ERROR]


@pytest.mark.parametrize(("section", "path", "value"), BREAKAGES, ids=lambda each: str(each)[:30])
def test_breakage_is_named_by_its_path(section: str, path: str, value: Any) -> None:
    (where,) = paths_of_errors(broken(complete(), section, path, value))
    assert where.startswith(f"{section}.{path}"), where


@settings(max_examples=MANIFESTS, deadline=None)
@given(manifests(), st.sampled_from(BREAKAGES))
def test_generated_manifest_is_refused_at_the_place_where_it_was_broken(
    manifest: DeploymentManifest, breakage: tuple[str, str, Any]
) -> None:
    section, path, value = breakage
    before = paths_of_errors(manifest.dump())
    found = paths_of_errors(broken(manifest.dump(), section, path, value))
    assert any(where.startswith(f"{section}.{path}") for where in found if where not in before), found
