"""Layered deployments: read strictly, merged as IoT Hub does."""

from __future__ import annotations

from typing import Any

import pytest
from contracts_manifests import DIGEST, PASSWORD, complete, manifests
from hypothesis import given, settings

from edge_contracts.errors import ContractError
from edge_contracts.layers import Layer, is_layered, merge, read_manifest
from edge_contracts.manifest import DeploymentManifest


def module(**changes: Any) -> dict[str, Any]:
    base = complete()["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["scorer"]
    return {**base, **changes}


def layer(**twins: dict[str, Any]) -> dict[str, Any]:
    return {"modulesContent": {name.replace("_", "$"): twin for name, twin in twins.items()}}


def full() -> dict[str, Any]:
    return layer(
        _edgeAgent={
            "properties.desired.modules.extra": module(),
            "properties.desired.runtime.settings.registryCredentials.r2": {
                "username": "u",
                "password": PASSWORD,
                "address": "two.example",
            },
        },
        _edgeHub={"properties.desired.routes.more": "FROM /messages/modules/extra/* INTO $upstream"},
        scorer={"properties.desired.threshold": 0.9, "properties.desired.nested.deep": 1},
    )


def test_layer_is_told_from_a_whole_manifest_and_comes_back_as_it_was() -> None:
    found = read_manifest(full())
    assert isinstance(found, Layer)
    assert found.dump() == full()
    assert list(found.modules) == ["extra"]
    assert [route.name for route in found.routes] == ["more"]
    assert [credential.id for credential in found.credentials] == ["r2"]
    assert PASSWORD not in repr(found)
    assert isinstance(read_manifest(complete()), DeploymentManifest)
    assert is_layered(full())
    assert not is_layered(complete())


def test_wrapped_and_old_spellings_are_read() -> None:
    assert isinstance(read_manifest({"content": full()}), Layer)
    assert isinstance(read_manifest({"moduleContent": complete()["modulesContent"]}), DeploymentManifest)


def test_merged_manifest_has_what_base_and_layers_say() -> None:
    merged = merge(DeploymentManifest.parse(complete()), [Layer.parse(full())])
    assert set(merged.modules) == {"scorer", "extra"}
    assert {route.name for route in merged.routes} == {"up", "in", "more"}
    assert merged.module_twins["scorer"] == {
        "threshold": 0.9,
        "labels": ["a", "b"],
        "nested": {"deep": 1},
    }
    assert [finding.code for finding in merged.check() if finding.severity == "error"] == []


def test_higher_priority_wins_wholly() -> None:
    low = Layer.parse(layer(_edgeAgent={"properties.desired.modules.scorer": module(version="low")}))
    high = Layer.parse(
        layer(
            _edgeAgent={"properties.desired.modules.scorer": module(version="high", env={})},
            scorer={"properties.desired": {"only": 1}},
        )
    )
    merged = merge(DeploymentManifest.parse(complete()), [low, high])
    assert (merged.modules["scorer"].version, merged.modules["scorer"].env) == ("high", {})
    assert merged.module_twins["scorer"] == {"only": 1}
    assert merge(DeploymentManifest.parse(complete()), [high, low]).modules["scorer"].version == "low"


def test_route_to_a_module_of_another_layer_is_judged_on_the_merged_manifest() -> None:
    route = layer(_edgeHub={"properties.desired.routes.r": "FROM /messages/modules/nobody/* INTO $upstream"})
    assert Layer.parse(route).check() == []
    merged = merge(DeploymentManifest.parse(complete()), [Layer.parse(route)])
    assert "route-unknown-module" in {finding.code for finding in merged.check()}


def test_merged_size_is_held_against_the_budget() -> None:
    many = {
        f"properties.desired.modules.m{n}": module(settings={"image": f"x@{DIGEST}", "createOptions": "{}"})
        for n in range(60)
    }
    with pytest.raises(ContractError, match="largest") as caught:
        merge(DeploymentManifest.parse(complete()), [Layer.parse(layer(_edgeAgent=many))])
    assert caught.value.code == "manifest-size"


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"modulesContent": {}}, "modulesContent"),
        (
            layer(_edgeAgent={"properties.desired.systemModules.edgeHub": {}}),
            "$edgeAgent.properties.desired.systemModules.edgeHub",
        ),
        (layer(_edgeAgent={"properties.desired": {}}), "$edgeAgent.properties.desired"),
        (layer(_edgeAgent={"properties.desired.modules.a.b": module()}), "modules.a.b"),
        (layer(_edgeAgent={"properties.desired.modules.a": module(status="up")}), "modules.a.status"),
        (layer(_edgeHub={"properties.desired.routes.r": "INTO $upstream"}), "routes.r"),
        (
            layer(_edgeHub={"properties.desired.storeAndForwardConfiguration.timeToLiveSecs": 1}),
            "storeAndForward",
        ),
        (layer(scorer={"threshold": 1}), "scorer.threshold"),
        (layer(scorer={"properties.desired.a b": 1}), "a b"),
        (layer(scorer={"properties.desired": 1}), "scorer.properties.desired"),
        (layer(scorer=1), "scorer"),  # type: ignore[arg-type]
    ],
)
def test_broken_layer_is_refused_with_its_path(document: dict[str, Any], where: str) -> None:
    with pytest.raises(ContractError) as caught:
        Layer.parse(document)
    assert where in str(caught.value.where)


@settings(max_examples=30, deadline=None)
@given(manifests())
def test_whole_manifest_as_a_layer_gives_the_same_modules(manifest: DeploymentManifest) -> None:
    if not (manifest.modules or manifest.routes or manifest.credentials):
        return
    base = DeploymentManifest.assemble((), {})
    assembled = Layer.assemble(manifest.modules.values(), manifest.routes, manifest.credentials)
    merged = merge(base, [assembled])
    assert (merged.modules, merged.routes, merged.credentials) == (
        manifest.modules,
        manifest.routes,
        manifest.credentials,
    )
    assert merged.module_twins == manifest.module_twins
